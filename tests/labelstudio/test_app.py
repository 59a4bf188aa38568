"""The backend over real HTTP: the requests that Label Studio 1.23.2 sends, and answers that it takes."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from groundingml.inference import Tiling
from groundingml.labelstudio import Settings

Serve = Callable[..., httpx.Client]
Body = Callable[..., dict[str, Any]]


@pytest.fixture
def backend(serve: Serve, detector: Any, allow: tuple[str, ...]) -> httpx.Client:
    return serve(Settings(allow_hosts=allow), detector)


@pytest.fixture
def cat(site: Any) -> str:
    return f"{site.url}/photos/cat.jpg"


def textarea(*texts: str) -> dict[str, Any]:
    value = {"text": list(texts)}
    region = {
        "id": "b8331ee3ac",
        "from_name": "prompt",
        "to_name": "image",
        "type": "textarea",
        "value": value,
    }
    return {"result": [region]}


def check_item(item: dict[str, Any], version: str) -> None:
    """What Label Studio and its editor need of a prediction; it checks none of it itself."""
    assert item["model_version"] == version
    assert 0 <= item["score"] <= 1
    for region in item["result"]:
        value = region["value"]
        assert set(region) >= {
            "id",
            "from_name",
            "to_name",
            "type",
            "original_width",
            "original_height",
            "score",
        }
        assert region["type"] == "rectanglelabels"
        assert all(math.isfinite(value[side]) for side in ("x", "y", "width", "height"))
        assert min(value["x"], value["y"]) >= 0
        assert min(value["width"], value["height"]) > 0
        assert max(value["x"] + value["width"], value["y"] + value["height"]) <= 100 + 1e-9
        assert value["rotation"] == 0
        assert 0 <= region["score"] <= 1


def test_connecting(backend: httpx.Client, config_xml: str) -> None:
    health = backend.get("/health")
    assert (health.status_code, health.json()["status"], health.json()["model"]) == (200, "UP", "ready")
    setup = {
        "project": "1.1795417412",
        "schema": config_xml,
        "hostname": "http://localhost:37375",
        "access_token": "x",
        "extra_params": '{"threshold": 0.3}',
    }
    answer = backend.post("/setup", json=setup)
    assert answer.status_code == 200
    assert answer.json()["model_version"].startswith("0123456789ab-")
    assert backend.get("/versions").json() == {"versions": [answer.json()["model_version"]]}


def test_a_batch(backend: httpx.Client, site: Any, predict_body: Body, config_xml: str) -> None:
    names = ["cat.jpg", "coffee.jpg", "astronaut.jpg"]
    answer = backend.post("/predict", json=predict_body(*(f"{site.url}/photos/{name}" for name in names)))
    assert answer.status_code == 200
    version = backend.post("/setup", json={"schema": config_xml}).json()["model_version"]
    assert answer.json()["model_version"] == version
    items = answer.json()["results"]
    assert len(items) == 3
    for item in items:
        check_item(item, version)
        assert [region["value"]["rectanglelabels"] for region in item["result"]] == [["Cat"], ["canine"]]
    assert [item["result"][0]["original_width"] for item in items] == [451, 600, 512]
    ids = [region["id"] for item in items for region in item["result"]]
    assert len(set(ids)) == len(ids)
    again = backend.post("/predict", json=predict_body(f"{site.url}/photos/cat.jpg")).json()["results"]
    assert not {region["id"] for region in again[0]["result"]} & set(ids)


def test_one_bad_task_spoils_no_other(
    backend: httpx.Client, detector: Any, cat: str, predict_body: Body
) -> None:
    def fail_on_coffee(image: Any) -> None:
        if image.size == (600, 400):
            raise RuntimeError("CUDA out of memory")

    detector.before = fail_on_coffee
    body = predict_body(
        cat, "s3://bucket/x.jpg", cat.replace("cat", "missing"), cat.replace("cat", "coffee"), cat
    )
    body["tasks"] += [
        {"id": 6, "data": {"text": "no image"}},
        {"id": 7},
        None,
        7,
        {"id": 8, "data": {"image": 3}},
    ]
    items = backend.post("/predict", json=body).json()["results"]
    assert ["result" in item for item in items] == [True, False, False, False, True] + 5 * [False]
    assert all(isinstance(item, dict) for item in items), "a null would make Label Studio answer 500"
    assert "status 404" in items[2]["error"]
    assert "CUDA" not in items[3]["error"], "what went wrong inside belongs into the log"
    assert 'no field "image"' in items[5]["error"]


def test_a_failure_is_logged_with_its_reason_and_without_secrets(
    backend: httpx.Client, site: Any, predict_body: Body, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        body = predict_body(f"{site.url}/missing.jpg?X-Signature=verysecret")
        body["project_token"] = "verysecret"
        backend.post("/predict", json=body)
        backend.post("/webhook", json={"action": "START_TRAINING", "project": {"token": "verysecret"}})
        backend.post("/setup", json={"schema": "<View/>", "access_token": "verysecret"})
    ours = [
        record for record in caplog.records if not record.name.startswith(("httpx", "httpcore", "uvicorn"))
    ]
    assert any("Task 1:" in record.getMessage() and "status 404" in record.getMessage() for record in ours)
    assert "verysecret" not in "\n".join(record.getMessage() for record in ours)


def test_typing_a_prompt(backend: httpx.Client, cat: str, predict_body: Body, detector: Any) -> None:
    body = predict_body(cat, context=textarea("kitten", "cat . red ball, unicorn"), drafts=[])
    answer = backend.post("/predict", json=body).json()
    (item,) = answer["results"]
    check_item(item, answer["model_version"])
    assert [region["value"]["rectanglelabels"] for region in item["result"]] == [["Cat"], []]
    assert item["result"][1]["meta"] == {"text": ["red ball"]}
    assert [label.name for label in detector.asked[0]] == ["Cat", "red ball", "unicorn"], (
        "the newest text counts"
    )


def test_drawing_a_rectangle(backend: httpx.Client, cat: str, predict_body: Body, detector: Any) -> None:
    value = {"x": 20, "y": 50, "width": 50, "height": 40, "rotation": 0, "rectanglelabels": ["Cat"]}
    region = {"id": "a", "from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": value}
    older = {**region, "id": "b", "value": {**value, "x": 0, "rectanglelabels": ["canine"]}}
    threshold = {"id": "c", "from_name": "box_threshold", "type": "number", "value": {"number": 0.85}}
    body = predict_body(cat, context={"result": [threshold, older, region]}, drafts=[])
    answer = backend.post("/predict", json=body).json()
    (item,) = answer["results"]
    check_item(item, answer["model_version"])
    (found,) = item["result"]
    assert [label.name for label in detector.asked[0]] == ["Cat"]
    assert detector.asked[0][0].threshold == 0.85
    assert detector.sizes == [(226, 120)], "the drawn part of the 451 x 300 pixels, not scaled"
    # The known detector finds its cat at (0.1, 0.2, 0.5, 0.8) of whatever it is shown.
    corners = [(90 + 0.1 * 226) / 4.51, (150 + 0.2 * 120) / 3, 0.4 * 226 / 4.51, 0.6 * 120 / 3]
    assert [found["value"][side] for side in ("x", "y", "width", "height")] == pytest.approx(
        corners, abs=1e-3
    )
    assert (found["original_width"], found["original_height"]) == (451, 300)
    threshold["value"]["number"] = 0.95
    assert backend.post("/predict", json=body).json()["results"][0]["result"] == []
    value["width"] = 0.1
    assert backend.post("/predict", json=body).json()["results"][0]["result"] == [], "next to nothing drawn"
    assert len(detector.asked) == 2


def test_typing_a_sentence(backend: httpx.Client, cat: str, predict_body: Body, detector: Any) -> None:
    body = predict_body(cat, context=textarea("A cat is next to a red ball, under the lamp."), drafts=[])
    (item,) = backend.post("/predict", json=body).json()["results"]
    assert [region["value"]["rectanglelabels"] for region in item["result"]] == [["Cat"], []]
    assert [label.name for label in detector.asked[0]] == ["Cat", "red ball", "lamp"]


@pytest.mark.parametrize(
    "context",
    [
        {"result": []},
        {},
        {"result": None},
        textarea(),
        textarea(" . "),
        {
            "result": [
                {
                    "type": "rectanglelabels",
                    "from_name": "label",
                    "value": {"x": 1, "rectanglelabels": ["Cat"]},
                }
            ]
        },
        None,
    ],
)
def test_an_editor_without_a_prompt_gets_an_empty_prediction(
    backend: httpx.Client, cat: str, predict_body: Body, detector: Any, context: Any
) -> None:
    answer = backend.post("/predict", json=predict_body(cat, context=context, drafts=[]))
    assert answer.status_code == 200
    version = answer.json()["model_version"]
    assert answer.json()["results"] == [{"result": [], "score": 0.0, "model_version": version}]
    assert detector.asked == []


def test_a_prompt_that_fails_is_an_error_status(backend: httpx.Client, predict_body: Body) -> None:
    answer = backend.post("/predict", json=predict_body("ftp://host/x.jpg", context=textarea("cat")))
    assert answer.status_code == 502
    assert "cannot be read" in answer.json()["error"]


def test_the_version_changes_with_what_changes_predictions(
    serve: Serve, detector: Any, backend: httpx.Client, config_xml: str
) -> None:
    def version(xml: str, client: httpx.Client = backend) -> str:
        return str(client.post("/setup", json={"schema": xml}).json()["model_version"])

    first = version(config_xml)
    assert version(config_xml) == first
    changed = [
        config_xml.replace('value="Cat"', 'value="Lynx"'),
        config_xml.replace("cat,kitten", "cat,kitty"),
        config_xml.replace('alias="canine"', 'alias="hound"'),
        config_xml.replace('model_score_threshold="0.25"', 'model_score_threshold="0.3"'),
        config_xml.replace(' model_score_threshold="0.25"', ""),
        config_xml.replace('value="$image"', 'value="$picture"'),
        config_xml.replace('name="label"', 'name="box"'),
        config_xml.replace('value="Cat"', 'value="Cat" prompt="fluffy cat"'),
        config_xml.replace('value="Cat"', 'value="Cat" score_threshold="0.5"'),
        config_xml.replace('value="Cat"', 'value="Cat" negative_prompts="toy"'),
        config_xml.replace('value="Dog"', 'value="Dog" negative_prompts="toy"'),
        config_xml.replace('name="label"', 'name="label" negative_prompts="toy"'),
        config_xml.replace('name="label"', 'name="label" unmatched="Dog"').replace("dog,puppy", ""),
        config_xml.replace('name="label"', "name='label' extra_params='{\"merge_iou\": 0.5}'"),
        config_xml.replace('name="label"', "name='label' extra_params='{\"tile\": 512}'"),
        config_xml.replace(
            'name="label"', 'name=\'label\' extra_params=\'{"tile": {"size": 512, "overlap": 100}}\''
        ),
        config_xml.replace('name="label"', "name='label' extra_params='{\"task_score\": \"min\"}'"),
        config_xml.replace("RectangleLabels", "Labels").replace(
            "</View>", '<Rectangle name="r" toName="image"/></View>'
        ),
    ]
    assert len({first, *map(version, changed)}) == len(changed) + 1
    looks = config_xml.replace("<View>", '<View style="color: red">').replace('rows="1"', 'rows="3"')
    assert version(looks) == first, "what does not change predictions keeps the version"
    other = serve(Settings(), type(detector)({}, digest="ba9876543210"))
    assert version(config_xml, other).split("-")[1] == first.split("-")[1]
    assert version(config_xml, other) != first


def test_a_config_that_cannot_be_used_is_refused_by_name(
    backend: httpx.Client, predict_body: Body, cat: str
) -> None:
    brush = '<BrushLabels name="b" toName="i"><Label value="x"/></BrushLabels>'
    xml = f'<View><Image name="i" value="$image"/>{brush}</View>'
    for answer in (
        backend.post("/setup", json={"schema": xml}),
        backend.post("/predict", json=predict_body(cat, config=xml)),
    ):
        assert answer.status_code == 422
        assert "<BrushLabels>" in answer.json()["error"]


def test_extra_params_of_the_connection(
    backend: httpx.Client, cat: str, predict_body: Body, config_xml: str, detector: Any
) -> None:
    xml = config_xml.replace(' model_score_threshold="0.25"', "")
    setup = {"schema": xml, "project": "1.1795417412"}

    def version(extra_params: Any, **changes: Any) -> str:
        answer = backend.post("/setup", json={**setup, "extra_params": extra_params, **changes})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["model_version"])

    plain = version(None)
    options = (
        '{"threshold": 0.5, "merge_iou": 0.4, "negative_prompts": ["toy"], "task_score": "min", "tile": 640}'
    )
    chosen = version(options)
    version(None, project="2.1795417413")  # another project's connection
    assert chosen != plain
    answer = backend.post("/predict", json=predict_body(cat, config=xml)).json()
    assert answer["model_version"] == chosen
    assert [label.threshold for label in detector.asked[-1]] == [0.5, 0.5]
    assert [label.negative_prompts for label in detector.asked[-1]] == [("toy",), ("toy",)]
    assert detector.options[-1] == {"merge_iou": 0.4, "tile": Tiling(640, 160)}
    assert answer["results"][0]["score"] == pytest.approx(0.9), "puppy's 0.4 is below 0.5"
    assert version("") == plain
    assert backend.post("/predict", json=predict_body(cat, config=xml)).json()["model_version"] == plain
    answer = backend.post("/setup", json={**setup, "extra_params": '{"treshold": 0.5}'})
    assert (answer.status_code, '"treshold" is unknown' in answer.json()["error"]) == (422, True)


def test_controls_left_to_annotators_are_logged(
    backend: httpx.Client, config_xml: str, caplog: pytest.LogCaptureFixture
) -> None:
    brush = '<BrushLabels name="b" toName="image"><Label value="x"/></BrushLabels></View>'
    with caplog.at_level(logging.INFO):
        answer = backend.post("/setup", json={"schema": config_xml.replace("</View>", brush)})
    assert answer.status_code == 200
    assert any("rectangles are predicted: <BrushLabels" in record.getMessage() for record in caplog.records)


def test_several_images_in_one_task(backend: httpx.Client, site: Any, predict_body: Body) -> None:
    xml = """<View><Image name="a" value="$first"/><Image name="b" value="$second"/>
      <RectangleLabels name="ra" toName="a"><Label value="cat"/></RectangleLabels>
      <RectangleLabels name="rb" toName="b"><Label value="puppy"/></RectangleLabels></View>"""
    body = predict_body("", config=xml)
    body["tasks"][0]["data"] = {
        "first": f"{site.url}/photos/cat.jpg",
        "second": f"{site.url}/photos/coffee.jpg",
    }
    (item,) = backend.post("/predict", json=body).json()["results"]
    assert [(r["from_name"], r["to_name"], r["original_width"]) for r in item["result"]] == [
        ("ra", "a", 451),
        ("rb", "b", 600),
    ]


def test_labels_that_come_with_the_task(backend: httpx.Client, cat: str, predict_body: Body) -> None:
    xml = '<View><Image name="i" value="$image"/><RectangleLabels name="r" toName="i" value="$names"/></View>'
    body = predict_body(cat, cat, cat, config=xml)
    body["tasks"][0]["data"]["names"] = [{"value": "cat"}]
    body["tasks"][1]["data"]["names"] = []
    items = backend.post("/predict", json=body).json()["results"]
    assert [region["value"]["rectanglelabels"] for region in items[0]["result"]] == [["cat"]]
    assert items[1]["result"] == []
    assert 'no list "names"' in items[2]["error"]


def test_every_captured_request_gets_an_answer_that_label_studio_takes(
    serve: Serve, detector: Any, shared_data: Path, photo_dir: Path
) -> None:
    """Everything that a real Label Studio sent, answered as its source requires."""
    backend = serve(Settings(), detector)
    inline = "data:image/jpeg;base64," + base64.b64encode((photo_dir / "cat.jpg").read_bytes()).decode()
    seen: dict[str, int] = {}
    for file in sorted((shared_data / "label_studio" / "captured").glob("*.json")):
        capture = json.loads(file.read_text())
        requests = capture.get("requests", []) if isinstance(capture, dict) else capture
        for request in requests:
            if not isinstance(request, dict) or request.get("path") not in (
                "/health",
                "/setup",
                "/predict",
                "/webhook",
                "/versions",
            ):
                continue
            for task in (request["json"] or {}).get("tasks", []) if request["path"] == "/predict" else []:
                task["data"]["image"] = inline
            answer = backend.request(request["method"], request["path"], json=request["json"])
            seen[request["path"]] = seen.get(request["path"], 0) + 1
            assert answer.status_code == 200, (file.name, answer.text)
            assert isinstance(answer.json(), dict)
            if request["path"] == "/predict":
                results = answer.json()["results"]
                assert len(results) == len(request["json"]["tasks"])
                for item in results:
                    check_item(item, answer.json()["model_version"])
    assert set(seen) == {"/health", "/setup", "/predict", "/webhook", "/versions"}
    assert seen["/predict"] >= 5
