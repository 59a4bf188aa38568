"""What people changed, by region id and by overlap, on both databases."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from groundingml.learning.acceptance import acceptance_by_label, acceptance_over_time, corrections, was_moved
from groundingml.learning.accepted import accepted_tasks
from groundingml.learning.corrections import correct, correct_task
from groundingml.store import Store
from groundingml.store.annotations import Submitted, delete_annotations, put_annotation, put_task
from groundingml.store.predictions import NewPrediction, NewRegion, record_predictions

PROMPT = {"asked": {"dog": ["a dog", "puppy"]}, "typed": {}, "text": "cat"}
NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.timezone.utc)
Box = tuple[float, float, float, float]
A, B, C = (10.0, 10.0, 20.0, 20.0), (50.0, 50.0, 20.0, 20.0), (70.0, 10.0, 10.0, 10.0)


def region(region_id: str, box: Box, label: str | None = "cat", **changes: Any) -> NewRegion:
    named = {"from_name": "label", "to_name": "image", "phrase": None, "prompt": [f"a {label}"], "score": 0.8}
    x, y, width, height = box
    return NewRegion(
        **{"region_id": region_id, "label": label, "x": x, "y": y, "width": width, "height": height,
           **named, **changes}
    )  # fmt: skip


def drawn(region_id: str, box: Box, label: str | None = "cat", **changes: Any) -> dict[str, Any]:
    x, y, width, height = box
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
    return {
        "id": region_id,
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 640,
        "original_height": 480,
        "value": {**value, "rectanglelabels": [] if label is None else [label]},
        **changes,
    }


@pytest.fixture
def predict(store: Store) -> Callable[..., None]:
    """predict(region, ..., at=minutes, source="batch", version="v1") for task 1 of project 7."""

    def record(*regions: NewRegion, at: float = 0, source: Any = "batch", version: str = "v1") -> None:
        made = NOON + datetime.timedelta(minutes=at)
        one = NewPrediction("7", "1", version, source, PROMPT, 0.8, regions, (320, 240), made)
        with store.begin() as session:
            assert record_predictions(session, [one]) == 1

    return record


@pytest.fixture
def submit(store: Store) -> Callable[..., list[tuple[Any, ...]]]:
    """submit(entry, ..., at=minutes) -> the corrections: (kind, region id, predicted label, final label)."""

    def put(*result: dict[str, Any], at: float = 10, number: str = "100", state: Any = "accepted") -> Any:
        when = NOON + datetime.timedelta(minutes=at)
        given = Submitted(
            number, "7", "1", state, result, "3", 12.5, NOON + datetime.timedelta(minutes=5), when
        )
        with store.begin() as session:
            put_task(session, "7", "1", {"image": "/data/upload/7/a.jpg"}, when)
            row = put_annotation(session, given, when)
            assert row is not None
            correct(session, row)
        with store.read() as session:
            return shown(session)

    return put


def shown(session: Session) -> list[tuple[Any, ...]]:
    return [(row.kind, row.region_id, row.predicted_label, row.final_label) for row in corrections(session)]


def test_each_kind_by_id(store: Store, predict: Any, submit: Any) -> None:
    predict(region("k", A), region("m", B), region("r", C), region("d", (0, 80, 10, 10), "dog"))
    moved = (52.0, 50.0, 20.0, 20.0)
    found = submit(
        drawn("k", A), drawn("m", moved), drawn("r", C, "dog"), drawn("new", (30, 30, 5, 5), "dog")
    )
    assert sorted(found) == [
        ("added", "new", None, "dog"),
        ("deleted", "d", "dog", None),
        ("kept", "k", "cat", "cat"),
        ("moved", "m", "cat", "cat"),
        ("relabelled", "r", "cat", "dog"),
    ]
    with store.read() as session:
        rows = {row.region_id: row for row in corrections(session, "7")}
    assert rows["m"].iou == pytest.approx(18 / 22)
    assert rows["k"].iou == 1
    assert rows["new"].iou is rows["d"].iou is None
    assert rows["m"].predicted_box == {"x": 50, "y": 50, "width": 20, "height": 20}
    assert rows["m"].final_box == {"x": 52, "y": 50, "width": 20, "height": 20}
    assert rows["d"].final_box is rows["new"].predicted_box is None
    for row in rows.values():
        assert (row.model_version, row.lead_time, row.completed_by) == ("v1", 12.5, "3")
        assert row.made_at == NOON + datetime.timedelta(minutes=10)
    assert rows["m"].prompt == ["a cat"]
    assert rows["new"].prompt == ["a dog", "puppy"], "what had been asked when it was missed"


def test_moved_and_relabelled(store: Store, predict: Any, submit: Any) -> None:
    predict(region("a", A))
    assert submit(drawn("a", (15, 10, 20, 20), "dog")) == [("relabelled", "a", "cat", "dog")]
    with store.read() as session:
        (row,) = corrections(session)
    assert was_moved(row)
    assert row.iou == pytest.approx(15 / 25)


def test_a_nudge_is_no_move_and_a_turn_is_one(predict: Any, submit: Any) -> None:
    predict(region("a", A), region("b", B))
    turned = drawn("b", B)
    turned["value"]["rotation"] = 1
    assert submit(drawn("a", (10.01, 10, 20, 20)), turned) == [
        ("kept", "a", "cat", "cat"),
        ("moved", "b", "cat", "cat"),
    ]


def test_a_rectangle_with_labels_counts_once(predict: Any, submit: Any) -> None:
    predict(region("a", A, from_name="kind"))
    box = drawn("a", A, type="rectangle", from_name="box")
    kind = drawn("a", A, type="labels", from_name="kind")
    kind["value"]["labels"] = kind["value"].pop("rectanglelabels")
    assert submit(box, kind) == [("kept", "a", "cat", "cat")]


def test_the_same_box_of_several_controls(predict: Any, submit: Any) -> None:
    predict(region("a", A), region("b", A, "red", from_name="colour"))
    assert sorted(submit(drawn("a", A), drawn("b", A, "blue", from_name="colour"))) == [
        ("kept", "a", "cat", "cat"),
        ("relabelled", "b", "red", "blue"),
    ]


def test_without_ids_boxes_are_matched_by_overlap(predict: Any, submit: Any) -> None:
    """The pairs that overlap most in all, not the first that overlap at all."""
    predict(region("a", A), region("b", (14, 10, 20, 20)), region("c", C), region("d", B, to_name="other"))
    found = submit(drawn("x", (14, 10, 20, 20)), drawn("y", (10, 10, 20, 20), "dog"), drawn("z", B))
    assert sorted(found) == [
        ("added", "z", None, "cat"),
        ("deleted", "c", "cat", None),
        ("deleted", "d", "cat", None),
        ("kept", "x", "cat", "cat"),
        ("relabelled", "y", "cat", "dog"),
    ]


def test_with_ids_what_was_deleted_and_drawn_again_is_that(predict: Any, submit: Any) -> None:
    predict(region("a", A), region("b", B))
    assert sorted(submit(drawn("a", A), drawn("x", B))) == [
        ("added", "x", None, "cat"),
        ("deleted", "b", "cat", None),
        ("kept", "a", "cat", "cat"),
    ]


def test_an_update_replaces_and_a_skip_removes(predict: Any, submit: Any) -> None:
    predict(region("a", A))
    assert submit(drawn("a", A)) == [("kept", "a", "cat", "cat")]
    assert submit(at=11) == [("deleted", "a", "cat", None)]
    assert submit(drawn("a", B), at=12) == [("moved", "a", "cat", "cat")]
    assert submit(at=13, state="skipped") == []


def test_two_annotators_have_corrections_of_their_own(store: Store, predict: Any, submit: Any) -> None:
    predict(region("a", A))
    submit(drawn("a", A), number="100")
    assert submit(drawn("a", A, "dog"), number="101", at=11) == [
        ("kept", "a", "cat", "cat"),
        ("relabelled", "a", "cat", "dog"),
    ]
    with store.begin() as session:
        assert delete_annotations(session, "7", ["100"], NOON) == 1
        assert shown(session) == [("relabelled", "a", "cat", "dog")]


def test_an_empty_prediction_is_known_to_have_missed_things(store: Store, predict: Any, submit: Any) -> None:
    predict(version="v2")
    assert submit(drawn("x", A)) == [("added", "x", None, "cat")]
    with store.read() as session:
        (missed,) = corrections(session)
    assert (missed.model_version, missed.prompt) == ("v2", {"text": "cat"})


def test_nothing_predicted_and_nothing_accepted(store: Store, predict: Any, submit: Any) -> None:
    predict()
    assert submit() == []
    with store.read() as session:
        (task,) = accepted_tasks(session, "7")
    assert task.regions == ()
    assert (task.width, task.height) == (320, 240), "as predicted, since no region tells"
    assert task.images == {"image": "/data/upload/7/a.jpg"}


def test_the_prediction_that_the_annotator_began_with(predict: Any, submit: Any) -> None:
    """The one whose regions came back; else the newest before the annotation was begun, at minute 5."""
    predict(region("old", A), version="v1", at=0)
    predict(region("new", A), version="v2", at=2)
    predict(region("late", A), version="v3", at=8)
    assert submit(drawn("old", A)) == [("kept", "old", "cat", "cat")]
    assert submit(at=11) == [("deleted", "new", "cat", None)]


def test_answers_in_the_editor_count_when_something_of_them_was_accepted(predict: Any, submit: Any) -> None:
    predict(region("batch", A), at=0)
    predict(region("tried", C), at=5, source="editor")
    predict(region("e1", B), region("e2", C), at=6, source="editor")
    assert sorted(submit(drawn("batch", A), drawn("e1", B))) == [
        ("deleted", "e2", "cat", None),
        ("kept", "batch", "cat", "cat"),
        ("kept", "e1", "cat", "cat"),
    ]


def test_boxes_without_a_label(predict: Any, submit: Any) -> None:
    predict(region("a", A, None), region("b", B, None))
    assert submit(drawn("a", A, None), drawn("b", B, "dog")) == [
        ("kept", "a", None, None),
        ("relabelled", "b", None, "dog"),
    ]


def test_a_prediction_that_becomes_known_later(store: Store, predict: Any, submit: Any) -> None:
    assert submit(drawn("a", A)) == [("added", "a", None, "cat")]
    predict(region("a", A))
    with store.begin() as session:
        assert correct_task(session, "7", "1") == 1
        assert shown(session) == [("kept", "a", "cat", "cat")]


def test_statistics(store: Store, predict: Any, submit: Any) -> None:
    predict(region("a", A), region("b", B), region("c", C), region("d", (0, 80, 10, 10), "dog"))
    submit(
        drawn("a", A), drawn("b", (52, 50, 20, 20)), drawn("d", (0, 80, 10, 10), "dog"), drawn("n", C, "owl")
    )
    with store.read() as session:
        by_label = acceptance_by_label(corrections(session, "7"))
        (day,) = acceptance_over_time(session)
        assert acceptance_over_time(session, "8") == []
        assert acceptance_over_time(session, since=NOON + datetime.timedelta(days=1)) == []
    assert list(by_label) == ["cat", "dog", "owl"]
    cat = by_label["cat"]
    assert (cat.predicted, cat.kept, cat.moved, cat.deleted, cat.added) == (3, 1, 1, 1, 0)
    assert cat.rate == pytest.approx(1 / 3)
    assert cat.mean_iou == pytest.approx((1 + 18 / 22) / 2)
    assert (by_label["owl"].rate, by_label["owl"].added) == (None, 1)
    assert (day.day, day.model_version, day.project) == (NOON.date(), "v1", "7")
    assert (day.predicted, day.kept, day.added) == (4, 2, 1)
