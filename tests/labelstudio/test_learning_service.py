"""Versions that are promoted and rolled back while a server answers, and runs over HTTP."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from groundingml.labelstudio import Settings
from groundingml.labelstudio.label_config import parse_label_config
from groundingml.labelstudio.project_source import labels_of_config
from groundingml.learning.versions import drafting
from groundingml.models import checkpoint_digest
from groundingml.models.checkpoints.sources import EMBEDDED
from groundingml.store import Store, default_url, open_store
from groundingml.store.runs import Owner, claim_run, enqueue_run
from groundingml.store.tables import Run, Version
from groundingml.store.versions import add_version, promote_version, roll_back

DEADLINE_S = 60


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(default_url(tmp_path / "data")) as opened:
        yield opened


@pytest.fixture
def client(serve: Callable[..., httpx.Client], allow: tuple[str, ...], tmp_path: Path) -> httpx.Client:
    """A server with the embedded model."""
    backend = serve(Settings(allow_hosts=allow, data_dir=tmp_path / "data"), None)
    wait(lambda: backend.get("/health").json()["model"] == "ready")
    return backend


def wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def new_version(store: Store, data_dir: Path, run: int, threshold: float, project: str = "1") -> Version:
    """The embedded model with another threshold for cats."""
    with drafting(data_dir / "versions" / project / f"run-{run}") as draft:
        for file in (EMBEDDED / "nano").iterdir():
            shutil.copyfile(file, draft.path / file.name)
        draft.write("thresholds.json", {"labels": {"Cat": {"threshold": threshold}}})
        folder = draft.finish()
    with store.begin() as session:
        return add_version(
            session,
            project=project,
            digest=folder.digest,
            folder=f"versions/{project}/run-{run}",
            run_id=None,
            metrics={},
            thresholds={},
        )


def promote(store: Store, version: Version) -> None:
    with store.begin() as session:
        promote_version(session, session.get_one(Version, version.id), "better")


def version_of(client: httpx.Client, config_xml: str, project: str = "1") -> str:
    body = {"project": f"{project}.17", "schema": config_xml}
    return str(client.post("/setup", json=body).json()["model_version"])


def test_promotion_and_rollback_while_requests_run(
    client: httpx.Client, store: Store, tmp_path: Path, site: Any, predict_body: Any, config_xml: str
) -> None:
    base = version_of(client, config_xml)
    body = {**predict_body(f"{site.url}/photos/coffee.jpg"), "project": "1.17"}
    statuses: list[int] = []
    seen: set[str] = set()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = client.post("/predict", json=body)
            statuses.append(answer.status_code)
            seen.add(answer.json()["model_version"])
            assert "result" in answer.json()["results"][0]

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        first = new_version(store, tmp_path / "data", 1, 0.11)
        promote(store, first)
        wait(lambda: version_of(client, config_xml) != base)
        after = version_of(client, config_xml)
        assert after.split("-")[0] == first.digest
        wait(lambda: after in seen)
        assert version_of(client, config_xml, "2") == base  # another project
        with store.begin() as session:
            roll_back(session, "1", "worse")
        wait(lambda: version_of(client, config_xml) == base)
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    assert set(statuses) == {200}
    assert seen == {base, after}


def test_a_damaged_version_never_serves(
    client: httpx.Client, store: Store, tmp_path: Path, config_xml: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = version_of(client, config_xml)
    damaged = new_version(store, tmp_path / "data", 1, 0.11)
    (tmp_path / "data" / damaged.folder / "model.safetensors").write_bytes(b"")
    promote(store, damaged)
    wait(lambda: "cannot serve" in caplog.text)
    assert version_of(client, config_xml) == base
    whole = new_version(store, tmp_path / "data", 2, 0.12)
    promote(store, whole)
    wait(lambda: version_of(client, config_xml).split("-")[0] == whole.digest)


def test_a_server_starts_with_what_serves(
    serve: Callable[..., httpx.Client], store: Store, tmp_path: Path, config_xml: str
) -> None:
    version = new_version(store, tmp_path / "data", 1, 0.11)
    promote(store, version)
    half_written = tmp_path / "data" / "versions" / "1" / ".partial-elsewhere"
    half_written.mkdir()
    client = serve(Settings(data_dir=tmp_path / "data"), None)
    wait(lambda: version_of(client, config_xml).split("-")[0] == version.digest)
    assert checkpoint_digest(tmp_path / "data" / version.folder) == version.digest


def test_runs_over_http(client: httpx.Client, store: Store) -> None:
    assert client.get("/runs").json() == {"runs": []}
    with store.begin() as session:
        run = enqueue_run(session, "7", "command", {"device": "cpu"}, "lora").id
        claim_run(session, run, Owner.this_process(), lambda pid: True)
        session.get_one(Run, run).progress = {"phase": "training", "done": 3, "total": 9}
    shown = client.get(f"/runs/{run}").json()
    assert (shown["state"], shown["progress"]["done"]) == ("running", 3)
    assert [one["id"] for one in client.get("/runs", params={"project": "7"}).json()["runs"]] == [run]
    assert client.get("/runs", params={"project": "8"}).json() == {"runs": []}
    assert client.post("/projects/7/train").json()["is_new"] is False
    assert client.post(f"/runs/{run}/cancel").json()["cancel_requested"] is True
    missing = client.post("/runs/99/cancel")
    assert (missing.status_code, missing.json()) == (404, {"error": "There is no run 99."})


def test_what_a_project_asks_for(config_xml: str) -> None:
    labels = {label.name: label for label in labels_of_config(parse_label_config(config_xml))}
    assert labels["canine"].prompts
    assert all(label.threshold is None for label in labels.values())
