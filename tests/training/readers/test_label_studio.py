"""Label Studio's JSON export and annotations in its terms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from groundingml.training.annotations import DatasetError
from groundingml.training.readers import LabelledImage, LabelledRegion, read_annotations, records_of


def region(
    label: str | None = "cat", key: str = "r1", kind: str = "rectanglelabels", **value: Any
) -> dict[str, Any]:
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, **value}
    if label is not None:
        box[kind] = [label]
    return {"id": key, "type": kind, "from_name": "label", "to_name": "image", "value": box}


def task(number: int, image: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"id": number, "data": {"image": image}, "annotations": list(annotations)}


def annotation(*result: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": 5, "result": list(result), "was_cancelled": False, "updated_at": "2026-01-01", **more}


def write(folder: Path, *tasks: Any) -> Path:
    file = folder / "export.json"
    file.write_text(json.dumps(list(tasks)))
    return file


def test_tasks_become_records(pictures: Path, tmp_path: Path) -> None:
    (pictures / "b.png").rename(pictures / "0a1b2c3d-b.png")
    file = write(
        tmp_path,
        task(1, "/data/upload/7/0a1b2c3d-b.png", annotation(region("red cup"), region("cat", "r2", x=0))),
        task(2, "/data/local-files/?d=photos%2Fa.png", annotation()),
        task(3, "http://else.where/a.png?token=1", annotation(region(), was_cancelled=True)),
        task(4, "/data/upload/7/a.png"),
    )
    found = read_annotations(file, pictures)
    assert found.names == ["red cup", "cat"]
    assert [record.image_id for record in found.records] == [
        1,
        2,
    ]  # skipped and unlabelled tasks are left out
    first, second = found.records
    assert first.boxes_xyxy[0] == pytest.approx((4, 8, 16, 24))
    assert second.boxes_xyxy == ()
    assert second.absent == ("red cup", "cat")


def test_the_ground_truth_counts_else_what_was_updated_last(pictures: Path, tmp_path: Path) -> None:
    old, new = annotation(region("old")), annotation(region("new"), updated_at="2026-02-01")
    truth = annotation(region("truth"), ground_truth=True, updated_at="2025-01-01")
    assert read_annotations(write(tmp_path, task(1, "a.png", new, old)), pictures).names == ["new"]
    assert read_annotations(write(tmp_path, task(1, "a.png", new, truth)), pictures).names == ["truth"]


def test_rectangle_and_labels_of_one_region_are_joined_and_other_shapes_left_alone(
    pictures: Path, tmp_path: Path
) -> None:
    shape = region(None, "r1", "rectangle")
    label = region("cat", "r1", "labels")
    choice = {"id": "c", "type": "choices", "value": {"choices": ["good"]}}
    brush = {"id": "m", "type": "brushlabels", "value": {"format": "rle", "rle": [], "brushlabels": ["x"]}}
    (record,) = read_annotations(
        write(tmp_path, task(1, "a.png", annotation(shape, label, choice, brush))), pictures
    ).records
    assert record.names == ("cat",)
    assert record.boxes_xyxy[0] == pytest.approx((10, 10, 40, 30))


def test_a_turned_box_becomes_the_upright_box_around_it(pictures: Path) -> None:
    """20 x 10 pixels turned by a quarter about its corner at (50, 20): it then lies to the left of it."""
    turned = LabelledRegion("cat", x=50, y=40, width=20, height=20, rotation=90)
    found = records_of([LabelledImage(pictures / "a.png", 1, "task 1", (turned,))], names=["cat", "dog"])
    assert found.records[0].boxes_xyxy[0] == pytest.approx((40, 20, 50, 40))
    assert found.records[0].absent == ("dog",)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (task(9, "a.png", annotation(region(x="left"))), "task 9, annotation 5: region r1: x, y, width"),
        (
            task(9, "a.png", annotation(region(None))),
            "task 9, annotation 5: region r1: a box without a label",
        ),
        (
            task(9, "a.png", annotation(region(width=0))),
            "task 9, annotation 5: region 1 ('cat'): 'bbox' has no",
        ),
        (task(9, "c.png", annotation(region())), "task 9: no image 'c.png' in"),
        (task(9, "../a.png", annotation(region())), "task 9: its 'data' names no image"),
        (
            {"id": 9, "image": "a.png", "label": []},
            "task 9: has no list 'annotations'; export the project as",
        ),
        ("a.png", "[1]: expected a task"),
    ],
)
def test_bad_records_are_named_or_left_out(bad: Any, said: str, pictures: Path, tmp_path: Path) -> None:
    file = write(tmp_path, task(1, "b.png", annotation(region())), bad)
    with pytest.raises(DatasetError) as refused:
        read_annotations(file, pictures, kind="label-studio")
    (problem,) = refused.value.problems
    assert said in problem
    kept = read_annotations(file, pictures, kind="label-studio", bad_records="skip")
    assert kept.problems == [problem]
    assert kept.records[0].names == ("cat",)
