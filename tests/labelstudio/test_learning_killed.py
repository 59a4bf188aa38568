"""kill -9 of the server and of the training process at twenty random moments, with corrections coming in all
the while."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw

from groundingml.learning.project_run import RunOptions
from groundingml.learning.versions import open_version, process_lives
from groundingml.models import checkpoint_digest
from groundingml.store import Store, default_url, open_store
from groundingml.store.runs import enqueue_run, unfinished_runs
from groundingml.store.tables import Annotation, Correction, InboxEvent, Run
from groundingml.store.versions import promote_version, serving_version, versions_of

pytestmark = pytest.mark.slow

KILLS = 20
DEADLINE_S = 180
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="red square"/></RectangleLabels></View>"""
PROJECT = {"id": 7, "title": "Squares", "label_config": CONFIG}
QUICK = RunOptions(
    base="nano",
    device="cpu",
    recipe_options={"steps": 20, "epochs": (1, 3), "cached_views": 1, "checkpoint_steps": 3},
)


class Annotator:
    """Submits annotations without a pause, and remembers those that the server acknowledged."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.acknowledged: dict[int, float] = {}
        """Annotation -> the x of its box as last acknowledged."""
        self.uncertain: set[int] = set()
        """Sent without an answer: kept or not, either is right, until the next acknowledged change."""
        self.versions: set[str] = set()
        self._stop = threading.Event()
        self._rng = random.Random(1)
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        number = 0
        with httpx.Client(base_url=self.url, timeout=5, trust_env=False) as client:
            while not self._stop.wait(0.03):
                with contextlib.suppress(httpx.TransportError):
                    self._look(client)
                    number += 1
                    self._submit(client, number, "ANNOTATION_CREATED", 10.0)
                    if number % 4 == 0:
                        known = self._rng.choice(list(self.acknowledged))
                        self._submit(client, known, "ANNOTATION_UPDATED", self._rng.uniform(1, 60))

    def _look(self, client: httpx.Client) -> None:
        answer = client.post("/setup", json={"project": "7.1", "schema": CONFIG})
        if answer.status_code == 200 and answer.json()["model_version"]:
            self.versions.add(answer.json()["model_version"].split("-")[0])

    def _submit(self, client: httpx.Client, number: int, action: str, x: float) -> None:
        self.uncertain.add(number)
        if client.post("/webhook", json=event(number, action, x)).status_code == 200:
            self.acknowledged[number] = x
            self.uncertain.discard(number)


def event(number: int, action: str, x: float) -> dict[str, Any]:
    """What Label Studio sends when an annotator submits."""
    image = Image.new("RGB", (96, 64), (90, 120, 90))
    left = 96 * x / 100
    ImageDraw.Draw(image).rectangle((left, 20, left + 29, 44), fill=(220, 20, 20))
    file = io.BytesIO()
    image.save(file, "PNG")
    # Few different images, so that the runs stay short: tasks 1 to 12.
    task = {
        "id": number % 12 + 1,
        "data": {"image": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }
    value = {"x": x, "y": 31.25, "width": 30.0, "height": 38.0, "rectanglelabels": ["red square"]}
    region = {
        "id": f"region{number}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 96,
        "original_height": 64,
        "value": value,
    }
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1000 % 1_000_000:06d}Z"
    annotation = {"id": number, "result": [region], "task": task["id"], "completed_by": 1, "updated_at": now}
    return {
        "action": action,
        "project": PROJECT,
        "task": task,
        "annotation": {**annotation, "created_at": now},
    }


class Server:
    """`groundingml serve` in a process of its own, started again after each kill."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "groundingml.cli",
            "serve",
            "--port",
            str(self.port),
            "--device",
            "cpu",
        ]
        with (self.data_dir / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(self.data_dir)], stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        logs = [self.data_dir / "serve.log", *sorted(self.data_dir.glob("runs/*/log.txt"))]
        return "\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in logs)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    running.process.terminate()  # it ends its runs
    running.process.wait(60)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(default_url(tmp_path)) as opened:
        yield opened


def test_nothing_is_lost_doubled_or_half_served(server: Server, store: Store, tmp_path: Path) -> None:
    rng = random.Random(7)
    annotator = Annotator(server.url)
    try:
        wait(lambda: len(annotator.acknowledged) > 20, "no corrections", server)
        for number in range(KILLS):
            ask_for_a_run(store)
            if number % 4:  # else while it starts
                count = len(annotator.acknowledged)
                wait(lambda count=count: len(annotator.acknowledged) > count, "no corrections", server)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 3))
            kill_trainer(store)
            if number % 2:
                server.kill()
                check_versions(store, tmp_path)
                promote_one(store, rng)
                server.start()
        count = len(annotator.acknowledged)
        wait(lambda: len(annotator.acknowledged) > count + 5, "no corrections after the last kill", server)
    finally:
        annotator.close()

    wait(lambda: not waiting_events(store), "events are not processed", server)
    ask_for_a_run(store)
    wait(lambda: not unfinished(store), "the last run does not end", server)
    check_versions(store, tmp_path)
    with store.read() as session:
        kept = {int(one.annotation_id): one for one in session.query(Annotation)}
        corrections = [int(one.annotation_id) for one in session.query(Correction)]
        served = {checkpoint_digest("nano")} | {version.digest for version in versions_of(session)}
        ended = [run.state for run in session.query(Run)]
    assert set(annotator.acknowledged) <= set(kept)
    assert set(kept) <= set(annotator.acknowledged) | annotator.uncertain
    for number, x in annotator.acknowledged.items():
        if number not in annotator.uncertain:
            assert kept[number].result[0]["value"]["x"] == x, number
    assert sorted(corrections) == sorted(kept), "one box was added in each"
    assert annotator.versions <= served
    assert "done" in ended, server.log()
    assert not list(tmp_path.glob("versions/*/.partial-*")) or unfinished(store)


def ask_for_a_run(store: Store) -> None:
    with store.begin() as session:
        enqueue_run(session, "7", "command", dataclasses.asdict(QUICK), "lora")
        for run in unfinished_runs(session):
            run.attempts = min(run.attempts, 1)  # it is killed more often than a run may die by itself


def kill_trainer(store: Store) -> None:
    with store.read() as session:
        pids = [run.pid for run in unfinished_runs(session) if run.pid and process_lives(run.pid)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def promote_one(store: Store, rng: random.Random) -> None:
    """As somebody does by hand: whatever version there is, it must serve whole."""
    with store.begin() as session:
        present = serving_version(session, "7")
        others = [one for one in versions_of(session, "7") if one.folder and one is not present]
        if others:
            promote_version(session, rng.choice(others), "by hand")


def check_versions(store: Store, data_dir: Path) -> None:
    with store.read() as session:
        rows = [row for row in versions_of(session) if row.folder]
    for row in rows:
        assert open_version(data_dir / row.folder).digest == row.digest


def waiting_events(store: Store) -> int:
    with store.read() as session:
        return session.query(InboxEvent).filter(InboxEvent.processed_at.is_(None)).count()


def unfinished(store: Store) -> list[Run]:
    with store.read() as session:
        return unfinished_runs(session)


def wait(until: Callable[[], object], what: str, server: Server) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not until():
        assert time.monotonic() < deadline, f"{what}:\n{server.log()}"
        time.sleep(0.1)
