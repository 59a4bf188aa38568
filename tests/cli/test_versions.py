from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from groundingml.cli.app import app
from groundingml.learning.versions import drafting
from groundingml.models.checkpoints.sources import EMBEDDED
from groundingml.store import default_url, open_store
from groundingml.store.runs import Owner, claim_run, enqueue_run
from groundingml.store.tables import Run
from groundingml.store.versions import add_version, promote_version, reject_version, serving_version

Command = Callable[..., Result]


@pytest.fixture
def groundingml(tmp_path: Path) -> Command:
    """groundingml("versions", "list", ...) on a data folder of its own."""

    def run(*words: object) -> Result:
        arguments = [*map(str, words), "--data-dir", str(tmp_path)]
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})

    return run


def numbers(before: float, after: float) -> dict[str, Any]:
    def part(value: float) -> dict[str, Any]:
        return {"map50": value, "images": 12, "labels": {"cat": {"map50": value, "map": value, "boxes": 30}}}

    return {
        "before": {"holdout": part(before), "retention": part(0.5)},
        "after": {"holdout": part(after), "retention": part(0.49)},
    }


@pytest.fixture
def versions(tmp_path: Path) -> list[int]:
    """A version that served, the one that serves, and a rejected one."""
    with open_store(default_url(tmp_path)) as store:
        ids = []
        for number, (before, after) in enumerate([(0.0, 0.4), (0.4, 0.62), (0.62, 0.3)], start=1):
            with drafting(tmp_path / "versions" / "7" / f"run-{number}") as draft:
                for name in ("config.json", "model.safetensors"):
                    (draft.path / name).symlink_to(EMBEDDED / "nano" / name)
                draft.write("thresholds.json", {"labels": {"cat": {"threshold": 0.3 + number / 100}}})
                images = {"train": 48, "holdout": 12}
                told = {"run": number, "base": "nano", "recipe": "lora", "images": images}
                draft.write("provenance.json", told)
                folder = draft.finish()
            with store.begin() as session:
                version = add_version(
                    session,
                    project="7",
                    digest=folder.digest,
                    folder=f"versions/7/run-{number}",
                    run_id=None,
                    metrics=numbers(before, after),
                    thresholds={"labels": {"cat": {"threshold": 0.31, "precision": 0.9, "recall": 0.8}}},
                )
                ids.append(version.id)
                if number < 3:
                    promote_version(session, version, "promoted: held-out mAP50 rises")
                else:
                    reject_version(version, "not promoted: held-out mAP50 0.620 -> 0.300 falls")
    return ids


def serving(tmp_path: Path) -> int | None:
    with open_store(default_url(tmp_path)) as store, store.read() as session:
        version = serving_version(session, "7")
        return None if version is None else version.id


def test_a_list_with_reasons(groundingml: Command, versions: list[int]) -> None:
    shown = " ".join(groundingml("versions", "list").output.split())
    assert "serving" in shown
    assert "0.400 -> 0.620" in shown
    assert "0.300 falls" in shown
    listed = json.loads(groundingml("versions", "list", "--json", "--project", "7").output)
    assert [row["state"] for row in listed] == ["rejected", "serving", "retired"]
    assert json.loads(groundingml("versions", "list", "--json", "--project", "8").output) == []


def test_no_versions_yet(groundingml: Command) -> None:
    assert "the base model serves" in groundingml("versions", "list").output
    assert "No training runs yet" in groundingml("runs", "list").output


def test_showing_and_comparing(groundingml: Command, versions: list[int]) -> None:
    shown = groundingml("versions", "show", versions[1]).output
    assert "48 images to learn from, 12 held out" in " ".join(shown.split())
    assert "0.31" in shown
    compared = " ".join(groundingml("versions", "compare", versions[0], versions[1]).output.split())
    assert "+0.220" in compared
    assert "cat" in compared


def test_rolling_back_and_forth(groundingml: Command, versions: list[int], tmp_path: Path) -> None:
    result = groundingml("versions", "rollback", "--project", "7")
    assert result.exit_code == 0, result.output
    assert f"served by version {versions[0]} again" in result.output
    assert serving(tmp_path) == versions[0]
    assert "by the base model again" in groundingml("versions", "rollback", "--project", "7").output
    assert serving(tmp_path) is None
    result = groundingml("versions", "rollback", "--project", "7")
    assert (result.exit_code, "nothing to roll back" in result.output) == (1, True)
    assert "in place of the base model" in groundingml("versions", "promote", versions[1]).output
    assert serving(tmp_path) == versions[1]


def test_a_damaged_version_is_not_promoted(groundingml: Command, versions: list[int], tmp_path: Path) -> None:
    (tmp_path / "versions" / "7" / "run-1" / "thresholds.json").write_text("{}")
    result = groundingml("versions", "promote", versions[0])
    assert (result.exit_code, "not as it was written" in result.output) == (1, True)
    result = groundingml("versions", "rollback", "--project", "7")
    assert (result.exit_code, "not as it was written" in result.output) == (1, True)
    assert serving(tmp_path) == versions[1]
    assert groundingml("versions", "show", 99).exit_code == 1


def test_runs_are_listed_followed_and_cancelled(groundingml: Command, tmp_path: Path) -> None:
    with open_store(default_url(tmp_path)) as store:
        with store.begin() as session:
            run = enqueue_run(session, "7", "START_TRAINING", {"device": "cpu"}, "lora").id
            claim_run(session, run, Owner.this_process(), lambda pid: True)
            row = session.get(Run, run)
            assert row is not None
            row.progress = {"phase": "training", "done": 30, "total": 100, "loss": 1.5}
        assert "training 30 of 100, loss 1.500" in " ".join(groundingml("runs", "list").output.split())
        assert json.loads(groundingml("runs", "list", "--json").output)[0]["state"] == "running"
        assert "ends within seconds" in groundingml("runs", "cancel", run).output
        with store.begin() as session:
            row = session.get(Run, run)
            assert row is not None
            assert row.cancel_requested
            row.state, row.message = "cancelled", "cancelled"
        result = groundingml("runs", "follow", run)
        assert (result.exit_code, f"run {run} cancelled" in result.output) == (1, True)
        with store.begin() as session:
            row = session.get(Run, run)
            assert row is not None
            row.state, row.message = "done", "version 1 promoted"
    assert f"Run {run}: version 1 promoted" in groundingml("runs", "follow", run).output
    assert "is over: done" in groundingml("runs", "cancel", run).output
    assert groundingml("runs", "follow", 99).exit_code == 1
