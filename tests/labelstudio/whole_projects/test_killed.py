"""`groundingml label` killed at chosen moments and started again: neither gap nor duplicate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "groundingml.cli", "label", "--project", "7", "--model", "nano", "--json"]


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    def run(fake: Any, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, "--device", "cpu", *options],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "LABEL_STUDIO_URL": fake.url,
                "LABEL_STUDIO_API_KEY": fake.token,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.mark.slow
def test_killed_and_started_again(new_fake: Any, start: Any) -> None:
    fake = new_fake(10)
    import_path = "/api/projects/7/import/predictions"
    # Where each run dies, in the requests of its own: (method, path, which one, before or after it is done).
    moments = [
        ("POST", import_path, 1, "before"),
        ("POST", import_path, 1, "after"),
        ("POST", import_path, 2, "after"),
    ]
    for moment in moments:
        counts: dict[tuple[str, str], int] = {}
        process = start(fake, "--batch", "2")

        def kill(
            method: str, path: str, number: int, when: str,
            moment: Any = moment, counts: Any = counts, process: Any = process,
        ) -> tuple[int, dict[str, str]] | None:  # fmt: skip
            if when == "before":
                counts[method, path] = counts.get((method, path), 0) + 1
            if (method, path, counts[method, path], when) == moment:
                process.kill()
                process.wait()
                return (500, {}) if when == "before" else None
            return None

        fake.fault = kill
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, moment
    stored = len(fake.predictions)
    assert 0 < stored < 10
    fake.fault = lambda *about: None
    process = start(fake, "--batch", "2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert (report["already_labelled"], report["labelled"], report["left"]) == (stored, 10 - stored, 0)
    assert fake.versions() == {task: [report["model_version"]] for task in fake.tasks}


@pytest.mark.slow
def test_ctrl_c_stores_what_is_at_hand(new_fake: Any, start: Any) -> None:
    fake = new_fake(40)
    process = start(fake, "--batch", "20")

    def interrupt(method: str, path: str, number: int, when: str) -> None:
        if path == "/data/upload/7/6.png" and when == "before":
            process.send_signal(signal.SIGINT)

    fake.fault = interrupt
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    report = json.loads(out)
    assert report["interrupted"]
    assert 0 < report["labelled"] == len(fake.predictions) < 20
    assert "start the same command again" in err


def test_a_wrong_token_or_project_is_said_at_once(new_fake: Any, start: Any) -> None:
    fake = new_fake(1)
    fake.token = "f" * 40
    out, err = (process := start(fake)).communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err == "groundingml: Label Studio did not accept the API key\n"
