from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from groundingml.inference import Label
from groundingml.learning.examples import TaskExample, annotations_of
from groundingml.learning.snapshot import read_snapshot, take_snapshot, write_snapshot
from groundingml.store import Store, open_store
from groundingml.store.tables import Annotation, Correction, Task


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"sqlite:///{tmp_path / 'store.sqlite3'}")


def region(label: str | None, number: int = 0, image: str = "image") -> dict[str, Any]:
    value = {"x": 10.0, "y": 20.0, "width": 30.0, "height": 40.0, "rectanglelabels": [label] if label else []}
    name = {"from_name": "label", "to_name": image}
    return {"id": f"r{number}", "type": "rectanglelabels", **name, "value": value}


def annotate(store: Store, task: str, *regions: Any, state: str = "accepted", project: str = "7") -> None:
    with store.begin() as session:
        session.merge(Task(project=project, task=task, images={"image": f"/data/{task}.jpg"}))
        session.add(
            Annotation(
                annotation_id=f"{project}-{task}-{state}",
                project=project,
                task=task,
                state=state,
                result=list(regions),
                digest="",
            )
        )


def test_a_snapshot_holds_what_was_accepted(store: Store, tmp_path: Path) -> None:
    annotate(store, "1", region("cat"), region(None, 1), region("cat", 2, "other"))
    annotate(store, "2")  # there is nothing in it, somebody says
    annotate(store, "3", region("dog"), state="skipped")
    annotate(store, "4", region("unicorn"))
    annotate(store, "5", region("cat"), project="8")
    with store.begin() as session:
        for kind in ("kept", "moved", "added"):
            session.add(
                Correction(
                    annotation_id="7-1-accepted",
                    project="7",
                    task="1",
                    region_id="r0",
                    kind=kind,
                    made_at=session.get_one(Annotation, "7-1-accepted").updated_at,
                )
            )
    snapshot = take_snapshot(store, "7", [Label("cat", ("kitten",)), Label("dog")])
    assert [label.name for label in snapshot.labels] == ["cat", "dog", "unicorn"]
    assert [(example.task, len(example.boxes)) for example in snapshot.examples] == [
        ("1", 1),
        ("2", 0),
        ("4", 1),
    ]
    assert snapshot.examples[0] == TaskExample(
        "1", "image", "/data/1.jpg", (("cat", 10.0, 20.0, 30.0, 40.0),)
    )
    assert snapshot.problems == [
        "task 1: a box without a label",
        "task 1: a box on 'other', which is not an image of the task",
    ]
    assert set(snapshot.splits) == {"1", "2", "4"}
    assert snapshot.corrections == 2
    with store.read() as session:
        kept = {task.task: task.split for task in session.query(Task).filter(Task.project == "7")}
    assert kept == {**snapshot.splits, "3": None}
    write_snapshot(snapshot, tmp_path / "snapshot.json")
    assert read_snapshot(tmp_path / "snapshot.json") == snapshot


def test_boxes_in_pixels_inside_the_image() -> None:
    boxes = (("cat", 10.0, 20.0, 30.0, 40.0), ("cat", 90.0, 90.0, 20.0, 20.0), ("dog", 0.0, 0.0, 0.1, 50.0))
    example = TaskExample("1", "image", "a.jpg", boxes)
    (record,) = annotations_of([(example, Path("a.jpg"), (200, 100))], ["cat", "dog", "bird"]).records
    assert record.boxes_xyxy == ((20.0, 20.0, 80.0, 60.0), (180.0, 90.0, 200.0, 100.0))
    assert record.names == ("cat", "cat")
    assert record.absent == ("dog", "bird")
