"""What an annotator changes in a real Label Studio is what `groundingml corrections` shows, and what was
submitted while the server was stopped comes with `groundingml sync`."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <TextArea name="prompt" toName="image" editable="true" rows="1" maxSubmissions="1" smart="true"/>
  <RectangleLabels name="label" toName="image" smart="true" model_score_threshold="0.05">
    <Label value="Cat"/>
    <Label value="Cup"/>
    <Label value="Spoon"/>
    <Label value="Person" predicted_values="person,woman"/>
  </RectangleLabels>
</View>"""


@pytest.fixture
def groundingml(label_studio: Any, tmp_path: Path) -> Callable[..., str]:
    """groundingml("corrections", ...) on the data folder of this test's server: what it prints."""

    def run(*words: object) -> str:
        command = [
            sys.executable,
            "-m",
            "groundingml.cli",
            *map(str, words),
            "--data-dir",
            str(tmp_path / "data"),
        ]
        if words[0] == "sync":
            command += ["--url", label_studio.url, "--api-key", label_studio.token]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def corrections(groundingml: Callable[..., str]) -> Callable[..., dict[str, dict[str, Any]]]:
    """corrections(project, count) -> {region id: record}, once there are so many."""

    def read(project: int, count: int) -> dict[str, dict[str, Any]]:
        deadline = time.monotonic() + 60
        while True:
            lines = groundingml("corrections", "--project", project, "--json").splitlines()
            if len(lines) == count or time.monotonic() > deadline:
                break
        records = [json.loads(line) for line in lines]
        assert len(records) == count, records
        return {record["region_id"]: record for record in records}

    return read


def submit(label_studio: Any, task: int, result: list[dict[str, Any]], **more: Any) -> int:
    body = {"result": result, "lead_time": 7.5, **more}
    return int(label_studio.api("POST", f"/api/tasks/{task}/annotations/", json=body)["id"])


def drawn(region_id: str, label: str, x: float) -> dict[str, Any]:
    value = {"x": x, "y": 2, "width": 9, "height": 9, "rotation": 0, "rectanglelabels": [label]}
    return {
        "id": region_id,
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "origin": "manual",
        "original_width": 600,
        "original_height": 400,
        "image_rotation": 0,
        "value": value,
    }


def test_corrections_are_captured_and_lost_ones_repaired(
    label_studio: Any,
    start_backend: Callable[..., Any],
    photo_dir: Path,
    groundingml: Callable[..., str],
    corrections: Callable[..., dict[str, dict[str, Any]]],
    tmp_path: Path,
) -> None:
    server = start_backend(LABEL_STUDIO_URL=label_studio.url, LABEL_STUDIO_API_KEY=label_studio.token)
    project = label_studio.create_project("corrections", CONFIG)
    coffee, cat, astronaut = label_studio.upload(
        project, [photo_dir / name for name in ("coffee.jpg", "cat.jpg", "astronaut.jpg")]
    )
    backend = label_studio.connect(project, server.url)
    label_studio.retrieve_predictions(project)
    predicted = {one["task"]: one for one in label_studio.predictions(project)}
    regions = predicted[coffee]["result"]
    assert len(regions) >= 4, "the photo gives too few boxes for this test"
    version = predicted[coffee]["model_version"]

    # An annotator keeps, moves, relabels, deletes and adds.
    kept, moved, relabelled, *deleted = copy.deepcopy(regions)
    moved["value"]["x"] = (
        max(moved["value"]["x"] - 5, 0) if moved["value"]["x"] >= 5 else moved["value"]["x"] + 5
    )
    moved["origin"] = "prediction-changed"
    before = relabelled["value"]["rectanglelabels"][0]
    relabelled["value"]["rectanglelabels"] = ["Person"]
    result = [kept, moved, relabelled, drawn("byhand", "Spoon", 1)]
    annotation = submit(label_studio, coffee, result, parent_prediction=predicted[coffee]["id"])
    found = corrections(project, len(regions) + 1)
    assert {name: record["kind"] for name, record in found.items()} == {
        kept["id"]: "kept",
        moved["id"]: "moved",
        relabelled["id"]: "relabelled",
        "byhand": "added",
        **{region["id"]: "deleted" for region in deleted},
    }
    for record in found.values():
        about = [record[name] for name in ("annotation_id", "project", "task", "model_version", "lead_time")]
        assert about == [annotation, str(project), str(coffee), version, 7.5]
    assert found[kept["id"]]["iou"] == pytest.approx(1)
    assert found[kept["id"]]["score"] == pytest.approx(kept["score"])
    assert 0 < found[moved["id"]]["iou"] < 0.99
    assert (found[relabelled["id"]]["predicted_label"], found[relabelled["id"]]["final_label"]) == (
        before,
        "Person",
    )
    assert found["byhand"]["final_box"] == {"x": 1, "y": 2, "width": 9, "height": 9}

    # They think again: the update replaces what they did before. Another task is skipped.
    label_studio.api("PATCH", f"/api/annotations/{annotation}/", json={"result": [kept, moved]})
    submit(label_studio, astronaut, [], was_cancelled=True)
    found = corrections(project, len(regions))
    assert [record["kind"] for record in found.values()].count("deleted") == len(regions) - 2

    # A typed prompt: what is accepted of its answer is known as the model's too.
    answer = label_studio.type_prompt(backend["id"], cat, "cat")["result"]
    submit(label_studio, cat, [*predicted[cat]["result"], *answer])
    found = corrections(project, len(regions) + len(predicted[cat]["result"]) + len(answer))
    assert {found[region["id"]]["kind"] for region in answer} == {"kept"}

    # While the server is stopped, one is created, one changed, one deleted.
    second = submit(label_studio, cat, [drawn("third", "Cup", 50)])
    corrections(project, len(found) + 1 + len(predicted[cat]["result"]))
    assert server.stop() == 0
    lost = submit(label_studio, astronaut, [drawn("lost", "Cat", 30)])
    label_studio.api("PATCH", f"/api/annotations/{annotation}/", json={"result": [kept]})
    label_studio.api("DELETE", f"/api/annotations/{second}/")
    (report,) = map(json.loads, groundingml("sync", "--project", project, "--json").splitlines())
    assert (report["created"], report["changed"], report["deleted"]) == ([lost], [annotation], [second])
    assert (report["tasks"], report["predictions_recorded"], report["problems"]) == (3, 0, [])
    expected = len(regions) + len(predicted[cat]["result"]) + len(answer)
    gone = len(predicted[astronaut]["result"])
    found = corrections(project, expected + 1 + gone)
    assert found["lost"]["kind"] == "added"
    assert found[moved["id"]]["kind"] == "deleted"
    assert "third" not in found
    (again,) = map(json.loads, groundingml("sync", "--json").splitlines())
    assert (again["created"], again["changed"], again["deleted"]) == ([], [], [])

    # Without the store everything comes back from Label Studio, its predictions included.
    (tmp_path / "data" / "groundingml.sqlite3").rename(tmp_path / "lost.sqlite3")
    (anew,) = map(json.loads, groundingml("sync", "--project", project, "--json").splitlines())
    assert len(anew["created"]) == anew["annotations"]
    kinds = {name: record["kind"] for name, record in corrections(project, expected + 1 + gone).items()}
    prompted = {region["id"] for region in answer}
    assert {name: kind for name, kind in kinds.items() if name not in prompted} == {
        name: record["kind"] for name, record in found.items() if name not in prompted
    }
    assert label_studio.token not in server.log()
