"""Reconciling with a project: many pages, a busy server, and what happens meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from groundingml.cli.app import app
from groundingml.labelstudio.api_client import ApiError, LabelStudioApi
from groundingml.labelstudio.sync import PAGE, SyncReport, sync_project
from groundingml.learning.acceptance import corrections
from groundingml.learning.accepted import accepted_tasks
from groundingml.store import Store, default_url, open_store
from groundingml.store.inbox import add_event
from groundingml.store.tables import Annotation


def annotation(number: int, task: int, x: float = 10, second: int = 1, **changes: Any) -> dict[str, Any]:
    value = {"x": x, "y": 10, "width": 30, "height": 30, "rotation": 0, "rectanglelabels": ["Cat"]}
    region = {"id": f"r{number}", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    return {
        "id": number,
        "task": task,
        "result": [{**region, "original_width": 40, "original_height": 30, "value": value}],
        "was_cancelled": False,
        "created_at": "2026-03-01T12:00:00Z",
        "updated_at": f"2026-03-01T12:00:{second:02}Z",
        "lead_time": 1.5,
        "completed_by": {"id": 3, "email": "ann@example.com"},
        **changes,
    }


@pytest.fixture
def api(new_fake: Callable[[int], Any]) -> Callable[..., tuple[Any, LabelStudioApi]]:
    """api(tasks) -> a Label Studio with so many tasks, and a client that does not wait."""

    def start(tasks: int) -> tuple[Any, LabelStudioApi]:
        fake = new_fake(tasks)
        return fake, LabelStudioApi(fake.url, fake.token, pauses_s=(0, 0), pause=lambda seconds: None)

    return start


def numbers(report: SyncReport) -> tuple[list[int], list[int], list[int]]:
    found = [sorted(map(int, ids)) for ids in (report.created, report.changed, report.deleted)]
    return found[0], found[1], found[2]


def test_created_changed_and_deleted_ones(store: Store, api: Any) -> None:
    fake, client = api(4)
    fake.annotations = [annotation(1, 1), annotation(2, 2), annotation(3, 3, result=[], was_cancelled=True)]
    assert numbers(sync_project(store, client, "7")) == ([1, 2, 3], [], [])
    assert numbers(sync_project(store, client, "7")) == ([], [], [])
    fake.annotations = [annotation(2, 2, 50, 9), annotation(3, 3, second=9), annotation(4, 4)]
    report = sync_project(store, client, "7")
    assert numbers(report) == ([4], [2, 3], [1])
    assert (report.tasks, report.annotations, report.problems) == (3, 3, [])
    with store.read() as session:
        tasks = {one.task: one for one in accepted_tasks(session, "7")}
        assert sorted(tasks) == ["2", "3", "4"]
        assert tasks["2"].regions[0].box.x == 50
        assert tasks["2"].images == {"image": "/data/upload/7/2.png"}
        assert tasks["2"].completed_by == "3"
        assert {row.annotation_id for row in corrections(session)} == {"2", "3", "4"}
    del fake.tasks[4]
    fake.annotations.pop()
    assert numbers(sync_project(store, client, "7")) == ([], [], [4])


def test_many_pages_of_a_busy_server(tmp_path: Path, api: Any) -> None:
    fake, client = api(2 * PAGE + 7)
    fake.annotations = [annotation(number, number) for number in range(1, 2 * PAGE + 8)]
    fake.fault = lambda method, path, number, when: (503, {}) if number % 2 and when == "before" else None
    seen: list[int] = []
    with open_store(default_url(tmp_path)) as store:
        report = sync_project(store, client, "7", on_start=seen.append, on_task=lambda: seen.append(1))
        assert (len(report.created), report.tasks) == (2 * PAGE + 7, 2 * PAGE + 7)
        assert seen == [2 * PAGE + 7] + [1] * (2 * PAGE + 7)
        fake.annotations.clear()
        assert len(sync_project(store, client, "7").deleted) == 2 * PAGE + 7


def test_webhooks_that_come_meanwhile(store: Store, api: Any) -> None:
    """Something submitted after its page was read is not taken for deleted; something deleted after its page
    was read does not come back; an older page does not undo an update."""
    fake, client = api(3)
    fake.annotations = [annotation(1, 1), annotation(2, 2)]
    sync_project(store, client, "7")
    calls = []

    def meanwhile(method: str, path: str, number: int, when: str) -> None:
        # The third listing after the two counts is the first page with annotations.
        if (method, path, when) == ("GET", "/api/tasks", "after"):
            calls.append(number)
            if len(calls) == 3:
                with store.begin() as session:
                    body = {"project": {"id": 7}}
                    about = annotation(3, 3)
                    add_event(session, "7", "ANNOTATION_CREATED", {**body, "annotation": about})
                    about = annotation(1, 1, 70, 30)
                    add_event(session, "7", "ANNOTATION_UPDATED", {**body, "annotation": about})
                    add_event(session, "7", "ANNOTATIONS_DELETED", {**body, "annotations": [{"id": 2}]})
                from groundingml.labelstudio.inbox_processing import process_inbox

                assert process_inbox(store) == 3

    fake.fault = meanwhile
    assert numbers(sync_project(store, client, "7")) == ([], [], [])
    with store.read() as session:
        assert {name: session.get_one(Annotation, name).state for name in "123"} == {
            "1": "accepted",
            "2": "deleted",
            "3": "accepted",
        }
        assert session.get_one(Annotation, "1").result[0]["value"]["x"] == 70


def test_predictions_that_were_not_recorded(store: Store, api: Any) -> None:
    """They are taken from Label Studio, and the corrections understood again; other models' are left."""
    fake, client = api(2)
    fake.annotations = [annotation(1, 1), annotation(2, 2)]
    sync_project(store, client, "7")
    times = {"created_at": "2026-03-01T11:59:00Z"}
    region = {**annotation(1, 1)["result"][0], "score": 0.8}
    fake.predictions = [
        {"id": 1, "task": 1, "result": [region], "score": 0.8, "model_version": "abc-0123456789ab", **times},
        {"id": 2, "task": 2, "result": [], "score": 0.0, "model_version": "abc-0123456789ab", **times},
        {"id": 3, "task": 2, "result": [region], "score": 0.8, "model_version": "others", **times},
    ]
    report = sync_project(store, client, "7")
    assert (report.predictions, report.repaired) == (2, 0)
    with store.read() as session:
        first, second = corrections(session)
        assert (first.kind, first.model_version, first.score) == ("kept", "abc-0123456789ab", 0.8)
        assert (second.kind, second.model_version) == ("added", "abc-0123456789ab")
    assert sync_project(store, client, "7").predictions == 0


def test_what_cannot_be_read_is_named_and_the_rest_repaired(store: Store, api: Any) -> None:
    fake, client = api(2)
    fake.annotations = [annotation(1, 1, updated_at=None), annotation(2, 2)]
    report = sync_project(store, client, "7")
    assert report.created == ["2"]
    assert report.problems == ["task 1: an annotation's updated_at is no time: 'None'"]


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path, api: Any) -> None:
    fake, client = api(PAGE + 1)
    fake.annotations = [annotation(number, number) for number in range(1, PAGE + 2)]
    with open_store(default_url(tmp_path)) as store:
        pages = iter([False, True])
        report = sync_project(store, client, "7", should_stop=lambda: next(pages))
        assert (report.interrupted, len(report.created)) == (True, PAGE)
        assert len(sync_project(store, client, "7").created) == 1


def test_the_command(tmp_path: Path, api: Any) -> None:
    fake, _ = api(2)
    fake.annotations = [annotation(1, 1)]
    options = ["--url", fake.url, "--api-key", fake.token, "--data-dir", str(tmp_path)]

    def sync(*words: str) -> Any:
        return CliRunner().invoke(app, ["sync", *words, *options], env={"COLUMNS": "160"})

    none = sync()
    assert none.exit_code == 1
    assert "no project is known here yet" in none.output
    first = sync("--project", "7", "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout) == {
        "project": "7",
        "tasks": 1,
        "annotations": 1,
        "created": [1],
        "changed": [],
        "deleted": [],
        "predictions_recorded": 0,
        "problems": [],
    }
    both = sync("--project", "7", "--project", "8")
    assert both.exit_code == 1
    assert "Label Studio has no project 8" in both.output
    assert "not compared" in both.output
    with open_store(default_url(tmp_path)) as store, store.begin() as session:
        add_event(session, "8", "ANNOTATION_CREATED", {"annotation": annotation(9, 9), "project": {"id": 8}})
    assert CliRunner().invoke(app, ["corrections", "--json", *options[4:]]).stdout.count("\n") == 2
    forgotten = sync("--forget-missing")
    assert forgotten.exit_code == 0, forgotten.output
    assert "forgotten" in forgotten.output
    lines = CliRunner().invoke(app, ["corrections", "--json", *options[4:]]).stdout.splitlines()
    assert [json.loads(line)["project"] for line in lines] == ["7"]


def test_an_unreachable_server_and_a_missing_token(tmp_path: Path, api: Any) -> None:
    fake, client = api(1)
    fake.stop()
    with open_store(default_url(tmp_path)) as store, pytest.raises(ApiError, match="cannot be reached"):
        sync_project(store, client, "7")
    result = CliRunner().invoke(app, ["sync", "--data-dir", str(tmp_path)], env={"LABEL_STUDIO_API_KEY": ""})
    assert result.exit_code == 2
    assert "LABEL_STUDIO_URL" in result.output
