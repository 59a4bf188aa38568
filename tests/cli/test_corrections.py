"""`groundingml corrections` on a real store, also one that a stopped server left with events."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from groundingml.cli.app import app
from groundingml.store import Store, default_url, open_store
from groundingml.store.inbox import add_event, waiting_events
from groundingml.store.predictions import NewPrediction, NewRegion, record_predictions

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.timezone.utc)


@pytest.fixture
def groundingml(tmp_path: Path) -> Callable[..., Result]:
    """groundingml("corrections", ...) on a data folder of its own."""

    def run(*words: object) -> Result:
        arguments = [*map(str, words), "--data-dir", str(tmp_path)]
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})

    return run


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Store]:
    """What a server left that was killed: a prediction, and an event that was acknowledged only."""
    regions = [
        NewRegion(name, "label", "image", "cat [big]", None, ["cat"], x, 10, 20, 20, 0.9)
        for name, x in (("kept", 10), ("moved", 50), ("gone", 75))
    ]
    result = [
        {
            "id": name,
            "from_name": "label",
            "to_name": "image",
            "type": "rectanglelabels",
            "value": {"x": x, "y": 10, "width": 20, "height": 20, "rectanglelabels": [label]},
        }
        for name, x, label in (("kept", 10, "cat [big]"), ("moved", 55, "dog"), ("new", 0, "dog"))
    ]
    times = {"created_at": "2026-03-01T12:00:05Z", "updated_at": "2026-03-01T12:00:09.5Z"}
    annotation = {"id": 12, "task": 1, "result": result, "lead_time": 7.5, "completed_by": 3, **times}
    with open_store(default_url(tmp_path)) as store:
        with store.begin() as session:
            record_predictions(
                session, [NewPrediction("7", "1", "abc-def", "batch", None, 0.9, regions, None, NOON)]
            )
            add_event(session, "7", "ANNOTATION_CREATED", {"annotation": annotation, "project": {"id": 7}})
        yield store


def records(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_record_a_line(groundingml: Callable[..., Result], stopped: Store) -> None:
    found = records(groundingml("corrections", "--json"))
    assert {one["annotation_id"] for one in found} == {12}
    by_region = {one["region_id"]: one for one in found}
    assert {name: (one["kind"], one["moved"], one["relabelled"]) for name, one in by_region.items()} == {
        "kept": ("kept", False, False),
        "moved": ("relabelled", True, True),
        "gone": ("deleted", False, False),
        "new": ("added", False, False),
    }
    assert by_region["moved"] | {"iou": 0.6, "made_at": ""} == {
        "annotation_id": 12,
        "project": "7",
        "task": "1",
        "region_id": "moved",
        "control": "label",
        "kind": "relabelled",
        "moved": True,
        "relabelled": True,
        "iou": 0.6,
        "predicted_label": "cat [big]",
        "final_label": "dog",
        "predicted_box": {"x": 50, "y": 10, "width": 20, "height": 20},
        "final_box": {"x": 55, "y": 10, "width": 20, "height": 20},
        "score": 0.9,
        "prompt": ["cat"],
        "model_version": "abc-def",
        "completed_by": "3",
        "lead_time": 7.5,
        "made_at": "",
    }
    assert by_region["moved"]["iou"] == pytest.approx(0.6)
    assert by_region["moved"]["made_at"] == "2026-03-01T12:00:09.500000+00:00"
    with stopped.read() as session:
        assert waiting_events(session) == 0
    assert records(groundingml("corrections", "--json", "--project", "8")) == []


def test_the_tables(groundingml: Callable[..., Result], stopped: Store) -> None:
    shown = groundingml("corrections", "--limit", "3").stdout
    assert "the newest 3 of 4" in shown
    assert "relabelled, moved" in shown
    assert "cat [big] → dog" in shown
    lines = {line.split("│")[1].strip(): line.split() for line in shown.splitlines() if "│" in line}
    cells = [cell.strip() for cell in " ".join(lines["cat [big]"]).split("│")]
    assert cells[2:10] == ["3", "1", "0", "1", "1", "0", "33%", "0.80"]
    assert "Corrections" not in groundingml("corrections", "--limit", "0", "--project", "7").stdout


def test_before_there_are_any(groundingml: Callable[..., Result]) -> None:
    result = groundingml("corrections", "--project", "7")
    assert result.exit_code == 0
    assert "No corrections in project 7 yet" in result.output


def test_a_database_that_cannot_be_used(groundingml: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "groundingml.sqlite3").write_bytes(b"no database" * 1000)
    result = groundingml("corrections")
    assert result.exit_code == 1
    assert "file is not a database" in result.output
