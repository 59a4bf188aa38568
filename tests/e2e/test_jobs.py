"""Labelling jobs that a real server does for a real Label Studio."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

CONFIG = (Path(__file__).resolve().parents[2] / "examples" / "label_config.xml").read_text()
END_S = 180


@pytest.fixture
def server(label_studio: Any, start_backend: Callable[..., Any], tmp_path: Path) -> Callable[[], Any]:
    """Starts a backend on one data folder; again after it was killed."""

    def start() -> Any:
        return start_backend(
            "--data-dir",
            str(tmp_path / "data"),
            LABEL_STUDIO_URL=label_studio.url,
            LABEL_STUDIO_API_KEY=label_studio.token,
        )

    return start


def call(backend: Any, method: str, path: str, **request: Any) -> dict[str, Any]:
    answer = httpx.request(method, backend.url + path, timeout=30, trust_env=False, **request)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()
    return found


def wait_for(backend: Any, job: int, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + END_S
    while not reached(now := call(backend, "GET", f"/jobs/{job}")):
        assert time.monotonic() < deadline, (now, backend.log()[-3000:])
        time.sleep(0.1)
    return now


def is_over(job: dict[str, Any]) -> bool:
    return job["state"] not in ("queued", "running")


def predicted(label_studio: Any, project: int) -> Counter[int]:
    return Counter(prediction["task"] for prediction in label_studio.predictions(project))


def many_tasks(label_studio: Any, project: int, photo_dir: Path, count: int) -> list[int]:
    (first,) = label_studio.upload(project, [photo_dir / "cat.jpg"])
    image = label_studio.open_task(first)["data"]["image"]
    return [first, *label_studio.import_tasks(project, [{"image": image}] * (count - 1))]


def test_a_job_goes_on_after_kill_9_without_gap_or_duplicate(
    label_studio: Any, server: Callable[[], Any], photo_dir: Path
) -> None:
    project = label_studio.create_project("a killed job", CONFIG)
    tasks = many_tasks(label_studio, project, photo_dir, 40)
    backend = server()
    asked = call(backend, "POST", "/jobs", json={"project": project, "batch": 4})
    assert call(backend, "POST", "/jobs", json={"project": project, "batch": 4})["id"] == asked["id"]
    wait_for(backend, asked["id"], lambda job: 0 < len(predicted(label_studio, project)) < len(tasks))
    os.killpg(backend._process._process.pid, signal.SIGKILL)

    again = server()
    ended = wait_for(again, asked["id"], is_over)
    assert ended["state"] == "done", ended
    assert ended["attempts"] == 2, "it was in the middle when it was killed"
    assert ended["report"]["already_labelled"] > 0
    assert predicted(label_studio, project) == Counter(tasks)
    assert ended["report"]["labelled"] + ended["report"]["already_labelled"] == len(tasks)
    assert ended["report"]["boxes"]["Cat"] >= ended["report"]["labelled"]


def test_a_stopped_server_gives_its_job_to_the_next(
    label_studio: Any, server: Callable[[], Any], photo_dir: Path
) -> None:
    project = label_studio.create_project("a stopped server", CONFIG)
    tasks = many_tasks(label_studio, project, photo_dir, 60)
    backend = server()
    asked = call(backend, "POST", "/jobs", json={"project": project, "batch": 4})
    wait_for(backend, asked["id"], lambda job: len(predicted(label_studio, project)) > 0)
    assert backend.stop() == 0
    ended = wait_for(server(), asked["id"], is_over)
    assert (ended["state"], ended["attempts"]) == ("done", 1)
    assert ended["report"]["already_labelled"] > 0, "it was in the middle when it was stopped"
    assert ended["progress"]["done"] == ended["progress"]["total"] == ended["report"]["total"]
    assert predicted(label_studio, project) == Counter(tasks)


def test_cancelled_and_failed_jobs_say_so(
    label_studio: Any, server: Callable[[], Any], photo_dir: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("a cancelled job", CONFIG)
    tasks = many_tasks(label_studio, project, photo_dir, 150)
    backend = server()
    missing = call(backend, "POST", "/jobs", json={"project": 99999})
    ended = wait_for(backend, missing["id"], is_over)
    assert ended["state"] == "failed"
    assert "404" in ended["message"] or "no project" in ended["message"]

    asked = call(backend, "POST", "/jobs", json={"project": project, "batch": 4})
    wait_for(backend, asked["id"], lambda job: len(predicted(label_studio, project)) > 0)
    call(backend, "POST", f"/jobs/{asked['id']}/cancel")
    ended = wait_for(backend, asked["id"], is_over)
    assert ended["state"] == "cancelled"
    assert len(predicted(label_studio, project)) < len(tasks)

    listed = subprocess.run(
        [sys.executable, "-m", "groundingml.cli", "jobs", "list", "--data-dir", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "cancelled" in listed
    assert "failed" in listed


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, '"project" must be the number'),
        ({"project": True}, 400, '"project" must be the number'),
        ({"project": 1, "filter": "x"}, 400, '"filter" must be a list'),
        ({"project": 1, "filter": ["nonsense"]}, 400, "nonsense"),
        ({"project": 1, "batch": 0}, 400, '"batch" must be'),
        ({"project": 1, "force": 1}, 400, 'no "force"'),
    ],
)
def test_requests_that_are_none(backend: Any, body: dict[str, Any], status: int, message: str) -> None:
    answer = httpx.post(f"{backend.url}/jobs", json=body, timeout=30, trust_env=False)
    assert answer.status_code == status
    assert message in answer.json()["error"]
