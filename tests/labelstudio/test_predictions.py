"""Label Studio stores whatever comes, so regions have to be right whatever the detector says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from groundingml.inference import Detections, Thresholds
from groundingml.labelstudio.label_config import parse_label_config
from groundingml.labelstudio.predictions import (
    failed_prediction,
    labels_of,
    prediction,
    regions_from_detections,
)
from groundingml.labelstudio.prompts import Query, query_for_labels, query_for_text


@pytest.fixture
def query(config_xml: str) -> Query:
    config = parse_label_config(config_xml)
    return query_for_labels(config, config.images[0], {})


def regions(query: Query, boxes: list[Any], scores: list[float], labels: list[str]) -> list[dict[str, Any]]:
    found = Detections(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32),
        labels,
        np.zeros(len(labels), dtype=np.int64),
        (400, 200),
    )
    return regions_from_detections(found, query, Thresholds(0.3))


def test_a_box_in_percent_of_the_image(query: Query) -> None:
    (region,) = regions(query, [[20, 40, 120, 240]], [0.5], ["canine"])
    assert region["value"] == {
        "x": 10,
        "y": 10,
        "width": 50,
        "height": 50,
        "rotation": 0,
        "rectanglelabels": ["canine"],
    }
    assert (region["from_name"], region["to_name"], region["type"]) == ("label", "image", "rectanglelabels")
    assert (region["original_width"], region["original_height"], region["image_rotation"]) == (200, 400, 0)
    assert region["score"] == 0.5
    assert "meta" not in region


@pytest.mark.parametrize(
    "box",
    [
        [-50, -1e9, 100, 200],
        [150, 300, 1e9, 401],
        [199.5, 399.5, 200, 400],
        [0, 0, 200, 400],
        [66.6, 33.3, 200.01, 400],
    ],
)
def test_boxes_are_clipped_to_the_image(query: Query, box: list[float]) -> None:
    (region,) = regions(query, [box], [1.0000001], ["Cat"])
    value = region["value"]
    assert value["x"] >= 0
    assert value["y"] >= 0
    assert value["width"] > 0
    assert value["height"] > 0
    assert value["x"] + value["width"] <= 100 + 1e-9
    assert value["y"] + value["height"] <= 100 + 1e-9
    assert region["score"] <= 1


@pytest.mark.parametrize(
    ("box", "score"),
    [
        ([10, 10, 10, 50], 0.9),
        ([50, 10, 10, 50], 0.9),
        ([-20, 10, -10, 50], 0.9),
        ([300, 10, 310, 50], 0.9),
        ([math.nan, 10, 20, 50], 0.9),
        ([0, 0, math.inf, 50], 0.9),
        ([0, 0, 50, 50], math.nan),
        ([0, 0, 50, 50], math.inf),
        ([0, 0, 50, 50], 0.2),  # below the control's threshold
    ],
)
def test_what_is_no_box_is_left_out(query: Query, box: list[float], score: float) -> None:
    assert regions(query, [box], [score], ["Cat"]) == []


def test_ids_are_unique_over_many_regions(query: Query) -> None:
    found = [regions(query, [[0, 0, 9, 9]] * 50, [0.9] * 50, ["Cat"] * 50) for _ in range(20)]
    assert len({region["id"] for group in found for region in group}) == 1000


def test_regions_come_best_first_and_the_task_score_is_their_mean(query: Query) -> None:
    found = regions(query, [[0, 0, 9, 9]] * 3, [0.3, 0.9, 0.6], ["Cat", "canine", "Cat"])
    assert [round(region["score"], 3) for region in found] == [0.9, 0.6, 0.3]
    item = prediction(found, "v")
    assert item["score"] == pytest.approx(0.6)
    assert item["model_version"] == "v"
    assert prediction([], "v") == {"result": [], "score": 0.0, "model_version": "v"}


def test_a_phrase_that_is_no_label_gives_a_box_without_one(config_xml: str) -> None:
    config = parse_label_config(config_xml)
    query = query_for_text(config, config.images[0], "red ball", {})
    (region,) = regions(query, [[0, 0, 9, 9]], [0.9], ["red ball"])
    assert region["value"]["rectanglelabels"] == []
    assert region["meta"] == {"text": ["red ball"]}


def test_each_control_keeps_its_own_threshold() -> None:
    xml = """<View><Image name="i" value="$image"/>
      <RectangleLabels name="a" toName="i" model_score_threshold="0.1"><Label value="Cat"/></RectangleLabels>
      <RectangleLabels name="b" toName="i" model_score_threshold="0.5"><Label value="Cat"/></RectangleLabels>
      <RectangleLabels name="c" toName="i"><Label value="Cat"/></RectangleLabels></View>"""
    config = parse_label_config(xml)
    query = query_for_labels(config, config.images[0], {})
    found = regions(query, [[0, 0, 9, 9]] * 3, [0.2, 0.4, 0.6], ["Cat"] * 3)
    assert sorted(region["from_name"] for region in found) == ["a", "a", "a", "b", "c", "c"]


def test_a_label_keeps_its_own_threshold() -> None:
    xml = """<View><Image name="i" value="$image"/>
      <RectangleLabels name="a" toName="i" model_score_threshold="0.1">
        <Label value="Cat" score_threshold="0.5"/><Label value="Dog"/></RectangleLabels></View>"""
    config = parse_label_config(xml)
    query = query_for_labels(config, config.images[0], {})
    found = regions(query, [[0, 0, 9, 9]] * 3, [0.4, 0.6, 0.2], ["Cat", "Cat", "Dog"])
    assert [round(region["score"], 3) for region in found] == [0.6, 0.2]


PAIR = """<View><Image name="i" value="$image"/>
  <Labels name="what" toName="i" unmatched="{unmatched}"><Label value="Cat"/><Label value="Other"/></Labels>
  <Rectangle name="box" toName="i"/></View>"""


def test_a_rectangle_with_labels_is_two_results_with_one_id() -> None:
    config = parse_label_config(PAIR.format(unmatched=""))
    query = query_for_labels(config, config.images[0], {})
    found = regions(query, [[20, 40, 120, 240], [0, 0, 20, 40]], [0.5, 0.9], ["Cat", "Cat"])
    assert [(r["from_name"], r["type"]) for r in found] == [("box", "rectangle"), ("what", "labels")] * 2
    best_box, best_label, box, label = found
    assert best_box["id"] == best_label["id"] != box["id"] == label["id"]
    geometry = {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0}
    assert box["value"] == geometry
    assert label["value"] == {**geometry, "labels": ["Cat"]}
    assert labels_of(found) == ["Cat", "Cat"]
    assert prediction(found, "v")["score"] == pytest.approx(0.7), "each box counts once"


@pytest.mark.parametrize(("unmatched", "kinds"), [("", ["rectangle"]), ("Other", ["rectangle", "labels"])])
def test_a_typed_phrase_on_a_rectangle_with_labels(unmatched: str, kinds: list[str]) -> None:
    config = parse_label_config(PAIR.format(unmatched=unmatched))
    query = query_for_text(config, config.images[0], "red ball", {})
    found = regions(query, [[0, 0, 9, 9]], [0.9], ["red ball"])
    assert [region["type"] for region in found] == kinds
    assert all(region["meta"] == {"text": ["red ball"]} for region in found)
    assert labels_of(found) == [unmatched][: len(kinds) - 1]


@pytest.mark.parametrize(
    ("task_score", "scores", "expected"),
    [
        (None, [0.9, 0.6, 0.3], 0.6),
        ("mean", [0.9, 0.6, 0.3], 0.6),
        ("min", [0.9, 0.6, 0.3], 0.3),
        ("uncertainty", [0.5], 1.0),
        ("uncertainty", [0.9, 0.5], 0.6),
        ("uncertainty", [1.0], 0.0),
        ("min", [], 0.0),
        ("uncertainty", [], 0.0),
    ],
)
def test_task_scores(query: Query, task_score: Any, scores: list[float], expected: float) -> None:
    found = regions(query, [[0, 0, 9, 9]] * len(scores), scores, ["Cat"] * len(scores))
    assert prediction(found, "v", task_score)["score"] == pytest.approx(expected)


def test_a_failed_task_has_no_result() -> None:
    assert "result" not in failed_prediction("broken", "v")
