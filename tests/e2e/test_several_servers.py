"""Two real servers on one database, SQLite and PostgreSQL: what reaches either is not lost or doubled."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from groundingml.store import open_store
from groundingml.store.inbox import waiting_events
from groundingml.store.tables import Annotation, InboxEvent, Prediction

CONFIG = (Path(__file__).resolve().parents[2] / "examples" / "label_config.xml").read_text()
END_S = 180
TASKS, JOBS = 16, 3


@pytest.fixture
def servers(
    label_studio: Any, store_url: str, tmp_path: Path, make_backend: Callable[..., Any]
) -> Iterator[list[Any]]:
    """Two that share the database and the data folder."""
    started: list[Any] = []
    try:
        with ThreadPoolExecutor(2) as pool:  # at once, so that both meet an empty database
            starting = []
            for name in ("one", "two"):
                (tmp_path / name).mkdir()
                options = ("--store", store_url, "--data-dir", str(tmp_path / "data"))
                settings = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token}
                starting.append(pool.submit(make_backend, tmp_path / name, *options, **settings))
            started = [each.result() for each in starting]
        yield started
    finally:
        for server in started:
            server.stop()


def call(server: Any, method: str, path: str, **request: Any) -> dict[str, Any]:
    answer = httpx.request(method, server.url + path, timeout=60, trust_env=False, **request)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()
    return found


def until(reached: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + END_S
    while not (found := reached()):
        assert time.monotonic() < deadline, f"not within {END_S} s: {what}"
        time.sleep(0.2)
    return found


def test_webhooks_predictions_and_jobs_of_two_servers(
    label_studio: Any, servers: list[Any], store_url: str, photo_dir: Path
) -> None:
    """One project is connected to both, so that each correction is told to both; three others are labelled
    by jobs that both servers want to do."""
    project = label_studio.create_project("two servers", CONFIG)
    cat, astronaut = label_studio.upload(project, [photo_dir / "cat.jpg", photo_dir / "astronaut.jpg"])
    connected = [label_studio.connect(project, server.url) for server in servers]
    assert connected[0]["model_version"] == connected[1]["model_version"], "the same version from both"
    for task in (cat, astronaut):
        assert label_studio.open_task(task)["predictions"]

    image = label_studio.open_task(cat)["data"]["image"]
    projects = [label_studio.create_project(f"job {number}", CONFIG) for number in range(JOBS)]
    for other in projects:
        label_studio.import_tasks(other, [{"image": image}] * TASKS)
    asked = []
    for number, other in enumerate(projects):  # each job is asked for at both servers, and is one job
        pair = [call(server, "POST", "/jobs", json={"project": other, "batch": 5}) for server in servers]
        assert pair[0]["id"] == pair[1]["id"]
        asked.append(call(servers[number % 2], "GET", f"/jobs/{pair[0]['id']}")["id"])

    annotations = []
    for task in (cat, astronaut):
        for _ in range(5):
            body = {"result": [], "lead_time": 1.5}
            annotations.append(label_studio.api("POST", f"/api/tasks/{task}/annotations/", json=body)["id"])

    def job_ended(job: int) -> dict[str, Any] | None:
        found = call(servers[1], "GET", f"/jobs/{job}")
        return found if found["state"] not in ("queued", "running") else None

    for job, other in zip(asked, projects, strict=True):
        ended = until(partial(job_ended, job), f"job {job}")
        assert (ended["state"], ended["attempts"]) == ("done", 1), ended
        assert ended["report"]["labelled"] == TASKS
        predicted = Counter(prediction["task"] for prediction in label_studio.predictions(other))
        assert predicted == Counter({task["id"]: 1 for task in label_studio.tasks(other)})

    with open_store(store_url) as store:
        own = select(Annotation.annotation_id).where(Annotation.project == str(project))

        def settled() -> bool:
            with store.read() as session:
                known = session.scalars(own).all()
                return len(known) >= len(annotations) and not waiting_events(session)

        until(settled, "all corrections are known, and the inbox is empty")
        with store.read() as session:
            assert sorted(session.scalars(own)) == sorted(map(str, annotations))
            failed = session.scalars(select(InboxEvent).where(InboxEvent.error.is_not(None))).all()
            assert not failed
            counting = select(Prediction.project, func.count()).group_by(Prediction.project)
            kept = dict(session.execute(counting).all())
        assert {name: kept[name] for name in map(str, projects)} == dict.fromkeys(map(str, projects), TASKS)
