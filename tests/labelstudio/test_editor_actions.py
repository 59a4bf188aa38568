"""What the editor's requests mean: the newest prompt or rectangle, and the threshold set beside it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from groundingml.labelstudio.editor_actions import (
    DrawnRectangle,
    TypedPrompt,
    chosen_threshold,
    newest_action,
)
from groundingml.labelstudio.label_config import LabelConfig, parse_label_config
from groundingml.labelstudio.prompts import query_for_drawn

PAIR = """<View><Image name="image" value="$image"/>
  <Labels name="what" toName="image"><Label value="Cat"/><Label value="Dog" alias="d"/></Labels>
  <Rectangle name="box" toName="image" smart="true"/></View>"""


@pytest.fixture
def config(config_xml: str) -> LabelConfig:
    return parse_label_config(config_xml)


def textarea(text: Any, name: str = "prompt") -> dict[str, Any]:
    return {"id": "x", "from_name": name, "to_name": "image", "type": "textarea", "value": {"text": text}}


def rectangle(*labels: str, x: Any = 10, **value: Any) -> dict[str, Any]:
    box = {"x": x, "y": 20, "width": 30, "height": 40, "rotation": 0, **value}
    value = {**box, "rectanglelabels": list(labels)}
    return {"id": "r", "from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": value}


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ([textarea(["cat . dog"])], "cat . dog"),
        ([textarea("cat")], "cat"),
        ([textarea(["cat", "dog"])], "dog"),
        ([textarea(["cat"]), textarea(["fox"])], "fox"),
        ([textarea(["cat"]), textarea([" "])], "cat"),
        ([rectangle("Cat"), textarea(["fox"])], "fox"),
        ([textarea(["cat"], name="comment")], None),  # no smart text area of this config
        ([{"type": "rectanglelabels", "from_name": "label", "value": {"x": 1}}], None),
        ([None, 3, {"type": "textarea"}, textarea([3, None])], None),
        ([], None),
        (None, None),
        ({"a": 1}, None),
    ],
)
def test_the_newest_prompt(config: LabelConfig, result: Any, text: str | None) -> None:
    action = newest_action(config, result)
    assert (action.text if isinstance(action, TypedPrompt) else action) == text


def drawn(config: LabelConfig, *regions: Any) -> DrawnRectangle:
    action = newest_action(config, list(regions))
    assert isinstance(action, DrawnRectangle)
    return action


def test_the_newest_rectangle_is_the_last_one(config: LabelConfig) -> None:
    older = {**rectangle("canine", x=50), "id": "older"}
    action = drawn(config, textarea(["cat"]), older, rectangle("Cat"))
    assert (action.x, action.y, action.width, action.height) == (10, 20, 30, 40)
    assert action.labels == {"Cat"}
    assert [control.name for control in action.controls] == ["label"]
    assert action.area(451, 300) == (45, 60, 181, 180)


@pytest.mark.parametrize(
    "region",
    [
        {**rectangle("Cat"), "from_name": "unknown"},
        rectangle("Cat", x="10"),
        rectangle("Cat", x=float("nan")),
        rectangle("Cat", width=0),
        rectangle("Cat", height=-1),
        {**rectangle("Cat"), "value": None},
    ],
)
def test_what_is_no_rectangle_is_left_out(config: LabelConfig, region: Any) -> None:
    assert newest_action(config, [region]) is None


@pytest.mark.parametrize(
    ("value", "area", "why"),
    [
        ({"x": 0, "y": 0, "width": 100, "height": 100}, (0, 0, 200, 100), "all of the image"),
        ({"x": -10, "y": 90, "width": 50, "height": 50}, (0, 90, 80, 100), "what lies outside is cut off"),
        ({"x": 50, "y": 50, "width": 20, "height": 20, "rotation": 90}, (80, 50, 100, 90), "turned"),
        (
            {"x": 50, "y": 10, "width": 10, "height": 20, "rotation": 45},
            (85, 10, 115, 39),
            "its enclosing box",
        ),
        ({"x": 10, "y": 10, "width": 1, "height": 50}, None, "too thin"),
        ({"x": 110, "y": 10, "width": 20, "height": 50}, None, "beside the image"),
    ],
)
def test_the_area_in_pixels(config: LabelConfig, value: Any, area: Any, why: str) -> None:
    assert drawn(config, rectangle("Cat", **value)).area(200, 100) == area, why


def asked(config: LabelConfig, *regions: Any) -> list[tuple[str, str]]:
    query = query_for_drawn(config, drawn(config, *regions), {})
    return [(one.name, one.targets[0].control.name) for one in query.wanted]


def test_what_a_rectangle_asks_for(config: LabelConfig) -> None:
    assert asked(config, rectangle("canine")) == [("canine", "label")]
    assert asked(config, rectangle()) == [("Cat", "label"), ("canine", "label")], "no label: all of them"
    assert asked(config, rectangle("removed")) == [], "a label that the config has no more"


def test_a_rectangle_with_its_labels_beside_it() -> None:
    config = parse_label_config(PAIR)
    box = {**rectangle(), "from_name": "box", "type": "rectangle"}
    label = {**rectangle(), "from_name": "what", "type": "labels"}
    label["value"] = {**label["value"], "labels": ["d"]}
    other = {**label, "id": "other", "value": {**label["value"], "labels": ["Cat"]}}
    assert asked(config, other, box, label) == [("d", "what")]
    assert asked(config, other, label, box) == [("d", "what")]
    assert asked(config, other, box) == [("Cat", "what"), ("d", "what")]


def number(value: Any) -> dict[str, Any]:
    return {"id": "n", "from_name": "box_threshold", "type": "number", "value": {"number": value}}


@pytest.mark.parametrize(
    ("result", "drafts", "threshold"),
    [
        ([number(0.4)], [], 0.4),
        ([textarea(["0.2"], name="box_threshold")], [], 0.2),
        ([number(0.4), number(0)], [], 0.0),
        ([number(0.4), number(30)], [], 0.4),
        ([number("much")], [], None),
        ([number(None)], [], None),
        ([textarea(["0.2"])], [], None),
        ([], [{"updated_at": "2026-01-02", "result": [number(0.6)]}, {"updated_at": "2026-01-01"}], 0.6),
        ([number(0.4)], [{"updated_at": "2026-01-02", "result": [number(0.6)]}], 0.4),
        (None, [None, {"result": None}], None),
        (None, None, None),
    ],
)
def test_the_threshold_an_annotator_set(
    result: Any, drafts: Any, threshold: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert chosen_threshold({"drafts": drafts}, result) == threshold
    wrong = "30" in str(result) or "much" in str(result) or "None}" in str(result)
    assert ("no number from 0 to 1" in caplog.text) == wrong
    assert chosen_threshold(None, result) == (None if drafts and not result else threshold)
