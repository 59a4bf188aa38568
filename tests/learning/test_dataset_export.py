"""Exports, read back by the readers that training uses."""

from __future__ import annotations

import csv
import datetime
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from groundingml.learning.accepted import AcceptedTask
from groundingml.learning.dataset_export import ExportError, export_coco, export_yolo
from groundingml.learning.regions import AcceptedRegion, PercentBox
from groundingml.training.readers import read_coco, read_yolo

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.timezone.utc)
LABELS = ["dog", "cat", "never used"]


def region(*labels: str, image: str = "image", box: tuple[float, ...] = (10, 20, 30, 40)) -> AcceptedRegion:
    return AcceptedRegion("r", image, "label", labels, PercentBox(*box), 0.0, 200, 100)


def task(number: int, *regions: AcceptedRegion, **changes: Any) -> AcceptedTask:
    values: dict[str, Any] = {
        "project": "7",
        "task": str(number),
        "annotation_id": str(100 + number),
        "images": {"image": f"/data/upload/7/{number}.png"},
        "width": 200,
        "height": 100,
        "split": "train",
        "completed_by": "3",
        "lead_time": 1.0,
        "updated_at": NOON,
        "regions": regions,
    }
    return AcceptedTask(**{**values, **changes})


TASKS = [
    task(1, region("cat"), region("dog", "owl", box=(50, 50, 50, 50)), region()),
    task(2, split="holdout"),
    task(3, region("cat", image="left"), images={"left": "/l.png", "right side": "/r.png"}),
]


def picture(url: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 100), "red").save(buffer, "PNG")
    if url == "/r.png":
        raise ValueError("there is no such image")
    return buffer.getvalue()


def test_coco_with_images(tmp_path: Path) -> None:
    report = export_coco(TASKS, LABELS, tmp_path / "out", picture)
    assert (report.images, report.empty, report.boxes, report.without_label) == (3, 1, 4, 1)
    assert report.problems == ["task 3: there is no such image"]
    read = read_coco(tmp_path / "out" / "annotations.json", tmp_path / "out", decode_images=True)
    assert read.names == ["dog", "cat", "never used", "owl"], "the project's order, then others"
    assert [record.names for record in read.records] == [("cat", "dog", "owl"), (), ("cat",)]
    assert read.records[0].boxes_xyxy == ((20, 20, 80, 60), (100, 50, 200, 100), (100, 50, 200, 100))
    images = json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]
    assert images[1] | {"id": 0} == {
        "id": 0,
        "file_name": "images/task-2.png",
        "width": 200,
        "height": 100,
        "url": "/data/upload/7/2.png",
        "split": "holdout",
        "task": "2",
        "annotation": "102",
    }


def test_coco_with_urls(tmp_path: Path) -> None:
    report = export_coco([*TASKS, task(4, width=None, height=None)], LABELS, tmp_path / "out")
    assert report.images == 3
    assert [problem.partition(":")[0] for problem in report.problems] == ["task 3", "task 4"]
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        "/data/upload/7/1.png",
        "/data/upload/7/2.png",
        "/l.png",
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["annotations.json"]


def test_yolo(tmp_path: Path) -> None:
    report = export_yolo(TASKS, LABELS, tmp_path / "out", picture)
    assert (report.images, report.empty, report.boxes) == (3, 1, 4)
    train = read_yolo(tmp_path / "out" / "data.yaml", split="train")
    assert train.names == ["dog", "cat", "never used", "owl"]
    assert {record.path.name: record.names for record in train.records} == {
        "task-1.png": ("cat", "dog", "owl"),
        "task-3-left.png": ("cat",),
    }
    assert train.records[0].boxes_xyxy[0] == pytest.approx((20, 20, 80, 60), abs=1e-3)
    (held_out,) = read_yolo(tmp_path / "out" / "data.yaml", split="val").records
    assert (held_out.path.name, held_out.names) == ("task-2.png", ())


def test_yolo_with_urls(tmp_path: Path) -> None:
    export_yolo(TASKS, LABELS, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "images.csv").open()))
    assert rows[-1] == {"name": "task-3-right_side", "split": "train", "url": "/r.png"}
    assert (tmp_path / "out" / "labels" / "val" / "task-2.txt").read_text() == ""


def test_a_photo_on_its_side_is_copied_upright(tmp_path: Path) -> None:
    def lying(url: str) -> bytes:
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (100, 200), "red").save(buffer, "JPEG", exif=exif)
        return buffer.getvalue()

    export_coco([task(1, region("cat"))], [], tmp_path / "out", lying)
    with Image.open(tmp_path / "out" / "images" / "task-1.jpg") as copied:
        assert copied.size == (200, 100)
        assert copied.getexif().get(0x0112, 1) == 1
    (record,) = read_coco(tmp_path / "out" / "annotations.json", tmp_path / "out").records
    assert record.boxes_xyxy == ((20, 20, 80, 60),)


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="exists and is not empty"):
        export_coco(TASKS, LABELS, tmp_path / "out")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_yolo(TASKS, LABELS, tmp_path / "new", on_image=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
