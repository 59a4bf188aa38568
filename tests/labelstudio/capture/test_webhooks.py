"""Webhooks over real HTTP, as Label Studio sent them, into both databases."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event as database_event
from sqlalchemy import select

from groundingml.labelstudio.capture import Capture
from groundingml.learning.acceptance import corrections
from groundingml.store import Store, open_store
from groundingml.store.predictions import NewPrediction, NewRegion
from groundingml.store.tables import Annotation, Correction, InboxEvent, Project, Run, Task

SECRET = "s3cr3t-that-nobody-may-keep"
Serve = Callable[..., tuple[httpx.Client, Capture]]


def post(client: httpx.Client, body: Any) -> httpx.Response:
    answer = client.post("/webhook", json=body)
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json(), dict)
    return answer


def states(store: Store) -> dict[str, str]:
    with store.read() as session:
        return {row.annotation_id: row.state for row in session.scalars(select(Annotation))}


def everything(store: Store) -> str:
    """All that the database holds, as text."""
    from groundingml.store.tables import Table

    with store.read() as session:
        return "\n".join(
            str(row) for table in Table.metadata.sorted_tables for row in session.execute(select(table))
        )


def test_what_label_studio_sent(
    store: Store, serve_capture: Serve, captured: Any, settle: Callable[[Store], int]
) -> None:
    """A whole session of 1.23.2: create, update, train, delete, change the project, bulk create and delete,
    tasks, a skip."""
    client, _ = serve_capture(store)
    for number in ("08", "09"):
        post(client, captured(number))
    settle(store)
    with store.read() as session:
        row = session.get_one(Annotation, "1")
        assert (row.project, row.task, row.state, row.completed_by, row.lead_time) == (
            "1",
            "1",
            "accepted",
            "1",
            1.5,
        )
        assert row.result[0]["value"]["x"] == 15, "as updated"
        assert row.updated_at.isoformat() == "2026-11-23T07:03:38.220528+00:00"
        task = session.get_one(Task, ("1", "1"))
        assert task.images == {"image": "/data/upload/1/710cd2b2-im0.jpg"}
        assert (task.original_width, task.original_height) == (640, 480)
        (correction,) = corrections(session, "1")
        assert (correction.kind, correction.final_label) == ("added", "cat")
    for number in ("10", "12", "13", "14", "16", "17", "18"):
        post(client, captured(number))
    settle(store)
    found = states(store)
    assert found.pop("1") == "deleted"
    assert found.pop("10") == "skipped"
    assert set(found.values()) == {"accepted"}
    assert sorted(found, key=int) == [str(number) for number in range(2, 10)]
    post(client, captured("15"))
    assert settle(store) == 10
    assert set(states(store).values()) == {"deleted", "skipped"}
    with store.read() as session:
        assert corrections(session) == []
        assert all(
            event.error is None and event.attempts == 1 for event in session.scalars(select(InboxEvent))
        )
        (run,) = session.scalars(select(Run))
        assert (run.project, run.trigger, run.state) == ("1", "start_training", "queued")
        assert session.get_one(Project, "1").title == "capture"
    assert SECRET not in everything(store)


def test_a_correction_of_a_prediction(
    store: Store, serve_capture: Serve, captured: Any, settle: Callable[[Store], int]
) -> None:
    """The editor's submit of accepted suggestions: two kept, one rejected; the prompt is no region."""
    client, capture = serve_capture(store)
    regions = [
        NewRegion(name, "label", "image", label, None, [label], x, 20, 30, 25, score)
        for name, label, x, score in (
            ("reg0", "cat", 10, 0.87),
            ("reg1", "dog", 15, 0.5),
            ("reg2", "cat", 60, 0.4),
        )
    ]
    capture.record(NewPrediction("38", "1593", "v-1", "editor", {"text": "cat . dog"}, 0.5, regions))
    post(client, captured("41"))
    settle(store)
    with store.read() as session:
        rows = {row.region_id: row for row in corrections(session, "38")}
    assert {name: row.kind for name, row in rows.items()} == {
        "reg0": "kept",
        "reg1": "kept",
        "reg2": "deleted",
    }
    assert {row.model_version for row in rows.values()} == {"v-1"}
    assert rows["reg0"].lead_time == 18.201


def test_repeats_and_the_wrong_order_change_nothing(
    store: Store, serve_capture: Serve, event: Any, settle: Callable[[Store], int]
) -> None:
    client, _ = serve_capture(store)
    updates = [event("ANNOTATION_UPDATED", 1, second, x=second) for second in range(1, 6)]
    deleted = {**event("ANNOTATIONS_DELETED", 2), "annotations": [{"id": 2}]}
    del deleted["annotation"]
    bodies = [event("ANNOTATION_CREATED", 1), *updates, event("ANNOTATION_CREATED", 3), deleted]
    shuffled = bodies * 3
    random.Random(0).shuffle(shuffled)
    for body in [*shuffled, event("ANNOTATION_CREATED", 2)]:  # the last one comes after its deletion
        post(client, body)
    settle(store)
    assert states(store) == {"1": "accepted", "2": "deleted", "3": "accepted"}
    with store.read() as session:
        assert session.get_one(Annotation, "1").result[0]["value"]["x"] == 5
        assert sorted(row.region_id for row in session.scalars(select(Correction))) == ["r1", "r3"]


def test_a_whole_project_in_one_event(
    store: Store, serve_capture: Serve, event: Any, settle: Callable[[Store], int]
) -> None:
    """It is kept at once, and processed in parts."""
    client, _ = serve_capture(store)
    all_of_them = [event("ANNOTATIONS_CREATED", number) for number in range(1, 46)]
    body = {**all_of_them[0], "annotation": [one["annotation"] for one in all_of_them]}
    post(client, {**body, "task": [one["task"] for one in all_of_them]})
    assert settle(store) == 3
    assert len(states(store)) == 45
    with store.read() as session:
        assert session.get_one(Task, ("7", "45")).images == {"image": "/data/upload/7/45.jpg"}
    deleted = [{"id": number} for number in range(1, 46)]
    post(client, {"action": "ANNOTATIONS_DELETED", "project": {"id": 7}, "annotations": deleted})
    assert settle(store) == 6
    assert set(states(store).values()) == {"deleted"}


def test_tasks_and_projects_that_are_deleted(
    store: Store, serve_capture: Serve, event: Any, settle: Callable[[Store], int]
) -> None:
    client, _ = serve_capture(store)
    for number in (1, 2):
        post(client, event("ANNOTATION_CREATED", number))
    other = event("ANNOTATION_CREATED", 3)
    other["project"]["id"] = 8
    post(client, other)
    post(client, {"action": "TASKS_DELETED", "project": {"id": 7}, "tasks": [{"id": 1}]})
    settle(store)
    assert states(store) == {"1": "deleted", "2": "accepted", "3": "accepted"}
    # Another project's deletion of annotations does not reach these.
    post(client, {"action": "ANNOTATIONS_DELETED", "project": {"id": 8}, "annotations": [{"id": 2}]})
    post(client, {"action": "PROJECT_DELETED", "project": {"id": 7}})
    settle(store)
    assert states(store) == {"1": "deleted", "2": "deleted", "3": "accepted"}
    with store.read() as session:
        assert [task.project for task in session.scalars(select(Task))] == ["8"]


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[1]", b"true", b'{"project": 7}', b'{"action": 7}', b"\xff", b"[" * 100_000]
)
def test_bodies_that_are_no_events(tmp_path: Path, serve_capture: Serve, body: bytes) -> None:
    with open_store(f"sqlite:///{tmp_path / 'store.sqlite3'}") as store:
        client, _ = serve_capture(store)
        answer = client.post("/webhook", content=body)
        assert answer.status_code == 400
        assert answer.json()["status"] == "error"
        assert client.post("/webhook", content=b"x" * 1_000_001).status_code == 413
        assert client.post("/webhook", json={"action": "TASKS_CREATED", "project": 7}).json() == {
            "status": "ok"
        }


def test_events_that_make_no_sense_are_set_aside(
    store: Store, serve_capture: Serve, event: Any, settle: Callable[[Store], int]
) -> None:
    client, _ = serve_capture(store)
    broken = [
        event("ANNOTATION_CREATED", 1, updated_at="yesterday"),
        event("ANNOTATION_CREATED", 1, result=None),
        event("ANNOTATION_CREATED", 1, id=None),
        {"action": "ANNOTATION_CREATED", "project": {"id": 7}},
        {"action": "ANNOTATIONS_DELETED", "project": "none", "annotations": [{}]},
        {"action": "START_TRAINING"},
    ]
    strange = event("ANNOTATION_CREATED", 2, completed_by="Zoë\0", lead_time=float("nan"))
    for body in broken:
        post(client, body)
    answer = client.post("/webhook", content=json.dumps(strange))  # with NaN and NUL, which databases refuse
    assert answer.status_code == 200
    post(client, event("ANNOTATION_CREATED", 3))
    settle(store)
    assert states(store) == {"2": "accepted", "3": "accepted"}
    with store.read() as session:
        errors = [row.error for row in session.scalars(select(InboxEvent).order_by(InboxEvent.id))]
    assert [error is not None for error in errors] == [True] * 6 + [False] * 2
    assert errors[0] == "an annotation's updated_at is no time: 'yesterday'"


def test_many_at_once_into_several_servers(
    store: Store, store_url: str, serve_capture: Serve, event: Any, settle: Callable[[Store], int]
) -> None:
    """Two servers on one store, eight annotators: each event has its effect once, the newest of each
    annotation stays, and START_TRAINING pressed by all is one run."""
    with open_store(store_url) as second:
        clients = [serve_capture(one)[0] for one in (store, second)]

        def annotate(number: int) -> None:
            for second in range(10):
                post(clients[(number + second) % 2], event("ANNOTATION_UPDATED", number, second, x=second))
            post(clients[0], {"action": "START_TRAINING", "project": {"id": 7}})

        threads = [threading.Thread(target=annotate, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert settle(store) == 88
    with store.read() as session:
        rows = session.scalars(select(Annotation)).all()
        assert len(rows) == 8
        assert {row.result[0]["value"]["x"] for row in rows} == {9}
        assert {row.attempts for row in session.scalars(select(InboxEvent))} == {1}
        assert len(session.scalars(select(Run)).all()) == 1
        assert len(session.scalars(select(Correction)).all()) == 8


def test_a_full_disk_is_said_and_what_was_acknowledged_is_kept(
    tmp_path: Path, serve_capture: Serve, event: Any, settle: Callable[[Store], int], caplog: Any
) -> None:
    with open_store(f"sqlite:///{tmp_path / 'store.sqlite3'}") as store:
        limit = {"pages": 120}

        @database_event.listens_for(store.engine, "checkout")
        def _limit(connection: sqlite3.Connection, *_: Any) -> None:
            connection.execute(f"PRAGMA max_page_count = {limit['pages']}")

        client, capture = serve_capture(store)
        kept = 0
        for number in range(1, 500):
            body = event("ANNOTATION_CREATED", number, lead_time=number)
            body["task"]["data"]["image"] = "/data/upload/7/" + "x" * 2000
            answer = client.post("/webhook", json=body)
            if answer.status_code == 503:
                break
            assert answer.status_code == 200
            kept += 1
        assert answer.json()["status"] == "error"
        assert "full" in answer.json()["error"]
        region = NewRegion("r", "label", "image", "cat", None, "x" * 5000, 1, 2, 3, 4, 0.5)
        capture.record(NewPrediction("7", "1", "v", "batch", "x" * 50_000, 0.5, [region]))
        deadline = time.monotonic() + 60
        while capture.lost == 0:
            assert time.monotonic() < deadline, "the prediction is neither recorded nor counted as lost"
            time.sleep(0.02)
        limit["pages"] = 1_000_000
        settle(store)
        assert len(states(store)) == kept > 5
        post(client, event("ANNOTATION_CREATED", 1000))
        settle(store)
        assert len(states(store)) == kept + 1
        assert sum("Corrections cannot be kept" in record.message for record in caplog.records) == 1
