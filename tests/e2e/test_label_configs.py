"""Label configs beyond RectangleLabels, in a real Label Studio: what it accepts, sends and keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <TextArea name="prompt" toName="image" editable="true" rows="1" maxSubmissions="1" smart="true"/>
  <Number name="box_threshold" toName="image" min="0" max="1" step="0.05"/>
  <Labels name="what" toName="image" unmatched="Other" negative_prompts="statue"
          extra_params='{"tile": 400, "task_score": "min"}'>
    <Label value="Pet" prompt="a cat" score_threshold="0.35" negative_prompts="toy cat"/>
    <Label value="Other"/>
  </Labels>
  <Rectangle name="box" toName="image" smart="true"/>
  <RectangleLabels name="skipped" toName="image" model_skip="true"><Label value="Cat"/></RectangleLabels>
  <PolygonLabels name="outline" toName="image"><Label value="Cat"/></PolygonLabels>
</View>"""


def interact(label_studio: Any, backend: int, task: int, *regions: dict[str, Any]) -> list[dict[str, Any]]:
    """What the editor posts with the regions of an annotator's action; the regions it is answered."""
    body = {"task": task, "context": {"result": list(regions)}}
    answer = label_studio.api("POST", f"/api/ml/{backend}/interactive-annotating", json=body)
    assert "errors" not in answer, answer
    regions_found: list[dict[str, Any]] = answer["data"]["result"]
    return regions_found


def check_pairs(result: list[dict[str, Any]], labels: set[str]) -> None:
    """Each box is a rectangle and its label, two entries with one id."""
    assert result
    boxes = {region["id"]: region for region in result if region["type"] == "rectangle"}
    named = {region["id"]: region for region in result if region["type"] == "labels"}
    assert len(boxes) == len(named) == len(result) / 2
    for region_id, region in named.items():
        box = boxes[region_id]
        assert (box["from_name"], region["from_name"]) == ("box", "what")
        assert {**box["value"], "labels": region["value"]["labels"]} == region["value"]
        assert set(region["value"]["labels"]) <= labels


def test_rectangles_with_labels_beside_them(
    label_studio: Any, backend: Any, photo_dir: Path, request: Any
) -> None:
    project = label_studio.create_project(request.node.name[:50], CONFIG)
    (task,) = label_studio.upload(project, [photo_dir / "cat.jpg"])
    connection = label_studio.connect(project, backend.url)
    assert connection["state"] == "CO", connection
    assert "rectangles are predicted: <PolygonLabels name=" in backend.log()

    label_studio.retrieve_predictions(project)
    (prediction,) = label_studio.predictions(project)
    check_pairs(prediction["result"], {"Pet"})
    scores = [region["score"] for region in prediction["result"]]
    assert min(scores) >= 0.35
    assert abs(prediction["score"] - min(scores)) < 1e-6

    value = {"x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0}
    box = {"id": "r", "from_name": "box", "to_name": "image", "type": "rectangle", "value": value}
    label = {**box, "from_name": "what", "type": "labels", "value": {**value, "labels": ["Pet"]}}
    check_pairs(interact(label_studio, connection["id"], task, box, label), {"Pet"})
    threshold = {"id": "n", "from_name": "box_threshold", "to_name": "image", "type": "number"}
    threshold["value"] = {"number": 1}  # type: ignore[assignment]
    assert interact(label_studio, connection["id"], task, threshold, box, label) == []

    typed = {"id": "t", "from_name": "prompt", "to_name": "image", "type": "textarea"}
    typed["value"] = {"text": ["A cat looks at the camera."]}  # type: ignore[assignment]
    found = interact(label_studio, connection["id"], task, typed)
    check_pairs(found, {"Pet", "Other"})
    texts = [r["meta"]["text"] for r in found if r["value"].get("labels") == ["Other"]]
    assert all(text in (["camera"], ["cat"]) for text in texts)
