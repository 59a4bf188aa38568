"""When a run begins of its own accord: on both databases."""

from __future__ import annotations

import datetime

import pytest

from groundingml.learning.project_run import RunOptions
from groundingml.learning.requests import QUIET_S, device_name, due_projects, request_run
from groundingml.store import Store, utc_now
from groundingml.store.runs import end_run
from groundingml.store.tables import Annotation, Correction, Run


def correct(store: Store, project: str, count: int, kind: str = "moved", age_s: float = QUIET_S + 5) -> None:
    at = utc_now() - datetime.timedelta(seconds=age_s)
    with store.begin() as session:
        annotation = f"{project}-{kind}-{age_s}"
        session.add(
            Annotation(
                annotation_id=annotation, project=project, task="1", state="accepted", result=[], digest=""
            )
        )
        session.flush()
        for number in range(count):
            session.add(
                Correction(
                    annotation_id=annotation,
                    project=project,
                    task="1",
                    region_id=str(number),
                    kind=kind,
                    made_at=at,
                )
            )


def test_a_run_is_due_after_enough_corrections_and_a_quiet_moment(store: Store) -> None:
    assert due_projects(store, 10) == []
    correct(store, "1", 10)
    correct(store, "2", 9)
    correct(store, "3", 10, kind="kept")  # accepted as predicted: nothing to learn
    correct(store, "4", 10, age_s=1)  # somebody is at it
    assert due_projects(store, 10) == ["1"]
    correct(store, "2", 1, age_s=QUIET_S + 1)
    assert sorted(due_projects(store, 10)) == ["1", "2"]


def test_only_corrections_since_the_last_run_count(store: Store) -> None:
    correct(store, "1", 10)
    run, is_new = request_run(store, "1", "corrections", RunOptions())
    assert is_new
    assert due_projects(store, 10) == []  # it waits
    assert request_run(store, "1", "command", RunOptions())[1] is False
    with store.begin() as session:
        end_run(session, session.get_one(Run, run.id), "done", "promoted")
    assert due_projects(store, 10) == []
    later = utc_now() + datetime.timedelta(hours=1)
    correct(store, "1", 10, age_s=-60)
    assert due_projects(store, 10, later) == ["1"]


def test_a_device_has_one_name(store: Store) -> None:
    with pytest.raises(ValueError, match="unknown device"):
        device_name("gpu 7")
    assert device_name("cpu") == "cpu"
    run, _ = request_run(store, "1", "command", RunOptions(device="auto"))
    assert run.device == device_name("auto") != "auto"
    assert run.options["device"] == "auto"
