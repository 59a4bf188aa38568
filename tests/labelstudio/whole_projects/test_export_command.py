"""`groundingml export corrections`, and that `groundingml label` records what it predicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from groundingml.cli.app import app
from groundingml.store import default_url, open_store
from groundingml.store.tables import PredictedRegion, Prediction
from groundingml.training.readers import read_coco, read_yolo


@pytest.fixture
def corrected(new_fake: Callable[[int], Any], tmp_path: Path) -> Any:
    """A project with a box in task 1, nothing in task 2, task 3 skipped; captured by a sync."""
    fake = new_fake(3)
    times = {"created_at": "2026-03-01T12:00:00Z", "updated_at": "2026-03-01T12:00:01Z", "lead_time": 1}
    value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["canine"]}
    region = {
        "id": "r",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": 41,
        "original_height": 30,
        "value": value,
    }
    for task, result in ((1, [region]), (2, []), (3, [])):
        about = {"id": task, "task": task, "result": result, "was_cancelled": task == 3}
        fake.annotations.append({**about, "completed_by": 1, **times})
    done = run(fake, tmp_path, "sync", "--project", "7")
    assert done.exit_code == 0, done.output
    return fake


def run(fake: Any, data: Path, *words: str) -> Any:
    options = ["--data-dir", str(data / "data"), "--url", fake.url, "--api-key", fake.token]
    return CliRunner().invoke(app, [*words, *options])


def test_coco_with_images(corrected: Any, tmp_path: Path) -> None:
    words = ("export", "corrections", "--project", "7", "--output", str(tmp_path / "out"), "--copy-images")
    done = run(corrected, tmp_path, *words, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) | {"output": ""} == {
        "output": "",
        "images": 2,
        "empty": 1,
        "boxes": 1,
        "without_label": 0,
        "problems": [],
    }
    read = read_coco(tmp_path / "out" / "annotations.json", tmp_path / "out", decode_images=True)
    assert read.names == ["Cat", "canine"]
    assert [record.names for record in read.records] == [("canine",), ()]
    assert read.records[0].boxes_xyxy[0] == pytest.approx((4.1, 6, 16.4, 18))
    assert (tmp_path / "out" / "images" / "task-1.png").read_bytes() == corrected.files[
        "/data/upload/7/1.png"
    ]
    again = run(corrected, tmp_path, *words)
    assert again.exit_code == 1
    assert "exists and is not empty" in again.output


def test_yolo_with_an_image_that_is_gone(corrected: Any, tmp_path: Path) -> None:
    del corrected.files["/data/upload/7/2.png"]
    words = ("export", "corrections", "--project", "7", "--format", "yolo", "--output", str(tmp_path / "out"))
    done = run(corrected, tmp_path, *words, "--copy-images")
    assert done.exit_code == 1
    assert "left out task 2: " in done.output
    assert "1 images (0 empty), 1 boxes" in done.output
    (record,) = read_yolo(tmp_path / "out" / "data.yaml").records
    assert record.names == ("canine",)


def test_a_project_of_which_nothing_is_known(corrected: Any, tmp_path: Path) -> None:
    done = run(
        corrected, tmp_path, "export", "corrections", "--project", "8", "--output", str(tmp_path / "out")
    )
    assert done.exit_code == 1
    assert "groundingml sync --project 8" in done.output
    assert not (tmp_path / "out").exists()


def test_what_label_predicts_is_recorded(new_fake: Callable[[int], Any], tmp_path: Path) -> None:
    fake = new_fake(2)
    done = run(fake, tmp_path, "label", "--project", "7", "--json")
    assert done.exit_code == 0, done.output
    regions = {region["id"] for one in fake.predictions for region in one["result"]}
    with open_store(default_url(tmp_path / "data")) as store, store.read() as session:
        rows = session.scalars(select(Prediction)).all()
        assert {(row.project, row.task, row.source) for row in rows} == {("7", "1", "job"), ("7", "2", "job")}
        assert {row.model_version for row in rows} == {fake.predictions[0]["model_version"]}
        assert set(session.scalars(select(PredictedRegion.region_id))) == regions


def test_label_works_where_nothing_can_be_recorded(new_fake: Callable[[int], Any], tmp_path: Path) -> None:
    fake = new_fake(1)
    other = ["--store", "sqlite:////proc/nowhere/x.sqlite3", "--url", fake.url, "--api-key", fake.token]
    done = CliRunner().invoke(app, ["label", "--project", "7", *other])
    assert done.exit_code == 0, done.output
    assert "What is predicted is not recorded here" in done.output
    assert len(fake.predictions) == 1
