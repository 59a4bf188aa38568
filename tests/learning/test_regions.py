"""Rectangles in an annotation's result."""

from __future__ import annotations

import math
from typing import Any

import pytest

from groundingml.learning.regions import PercentBox, accepted_regions


def entry(
    region_id: str, kind: str = "rectanglelabels", labels: Any = ("cat",), **value: Any
) -> dict[str, Any]:
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, **value}
    if kind != "rectangle":
        box[kind] = list(labels)
    named = {"from_name": {"rectangle": "box", "labels": "kind"}.get(kind, "label"), "to_name": "image"}
    return {
        "id": region_id,
        "type": kind,
        **named,
        "original_width": 640,
        "original_height": 480,
        "value": box,
    }


def test_a_rectangle_and_its_labels_are_one_region() -> None:
    (region,) = accepted_regions([entry("a", "rectangle"), entry("a", "labels", ["cat", "pet"])])
    assert region.labels == ("cat", "pet")
    assert region.from_name == "kind"
    assert region.box == PercentBox(10, 20, 30, 40)
    assert (region.image_width, region.image_height) == (640, 480)


def test_a_rectangle_alone_has_no_label() -> None:
    (region,) = accepted_regions([entry("a", "rectangle")])
    assert (region.label, region.from_name) == (None, "box")


def test_other_entries_and_broken_ones_are_left_out() -> None:
    prompt = {"id": "t", "type": "textarea", "from_name": "prompt", "value": {"text": ["cat"]}}
    polygon = {"id": "p", "type": "polygonlabels", "value": {"points": [[1, 2]], "polygonlabels": ["cat"]}}
    broken = [
        entry("w", width=0),
        entry("n", x=math.nan),
        entry("s", y="1"),
        entry("o", x=120),
        {"id": "q"},
        7,
    ]
    assert [r.region_id for r in accepted_regions([prompt, polygon, *broken, entry("good")])] == ["good"]


def test_boxes_are_cut_at_the_image_and_others_are_left_to_the_last_digit() -> None:
    (outside,) = accepted_regions([entry("a", x=-5, y=90, width=20, height=20)])
    assert outside.box == PercentBox(0, 90, 15, 10)
    odd = {"x": 14.392386530014642, "y": 31.7130307467057, "width": 30.1, "height": 25.3}
    (inside,) = accepted_regions([entry("a", **odd)])
    assert inside.box.as_json() == odd


def test_a_turned_rectangle_has_the_upright_box_around_it() -> None:
    """A quarter turn clockwise around the top left corner of 192 x 96 pixels at (320, 240): 96 wide, 192
    high, to the left of the corner."""
    (region,) = accepted_regions([entry("a", x=50, y=50, width=30, height=20, rotation=90)])
    assert region.rotation == 90
    assert region.box.as_json() == pytest.approx({"x": 35, "y": 50, "width": 15, "height": 40})


@pytest.mark.parametrize(
    ("other", "iou"),
    [
        (PercentBox(0, 0, 10, 10), 1.0),
        (PercentBox(5, 0, 10, 10), 50 / 150),
        (PercentBox(10, 0, 10, 10), 0.0),
        (PercentBox(2, 2, 5, 5), 0.25),
    ],
)
def test_iou(other: PercentBox, iou: float) -> None:
    assert PercentBox(0, 0, 10, 10).iou(other) == pytest.approx(iou)
    assert other.iou(PercentBox(0, 0, 10, 10)) == pytest.approx(iou)
