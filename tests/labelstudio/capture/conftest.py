"""Webhook bodies as Label Studio 1.23.2 sends them, and servers that take them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import func, select

from groundingml.labelstudio.capture import Capture
from groundingml.labelstudio.events import Learn
from groundingml.labelstudio.webhooks import webhook_router
from groundingml.store import Store, open_store
from groundingml.store.inbox import waiting_events
from groundingml.store.tables import InboxEvent

CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="cat"/><Label value="dog"/></RectangleLabels></View>'
)
SECRET = "s3cr3t-that-nobody-may-keep"


@pytest.fixture
def event() -> Callable[..., dict[str, Any]]:
    """event(action, number, second, x=..., **fields of the annotation) -> a body of project 7."""
    return _event


def _event(action: str, number: int, second: float = 0, *, x: float = 10, **changes: Any) -> dict[str, Any]:
    value = {"x": x, "y": 10, "width": 30, "height": 30, "rotation": 0, "rectanglelabels": ["cat"]}
    made = f"2026-03-01T12:00:{second:09.6f}Z"
    annotation = {
        "id": number,
        "result": [
            {
                "id": f"r{number}",
                "from_name": "label",
                "to_name": "image",
                "type": "rectanglelabels",
                "original_width": 640,
                "original_height": 480,
                "value": value,
            }
        ],
        "was_cancelled": False,
        "created_at": "2026-03-01T12:00:00.000000Z",
        "updated_at": made,
        "lead_time": 1.5,
        "task": number,
        "project": 7,
        "completed_by": 1,
        **changes,
    }
    project = {
        "id": 7,
        "title": "cats",
        "label_config": CONFIG,
        "token": SECRET,
        "task_data_password": SECRET,
    }
    task = {"id": number, "data": {"image": f"/data/upload/7/{number}.jpg", "password": SECRET}, "project": 7}
    return {"action": action, "annotation": annotation, "project": project, "task": task}


@pytest.fixture
def captured(shared_data: Path) -> Callable[[str], dict[str, Any]]:
    """captured("08") -> the body of that webhook as Label Studio sent it, with a secret that can be found."""

    def read(number: str) -> dict[str, Any]:
        (file,) = (shared_data / "label_studio" / "captured").glob(f"{number}_*.json")
        requests = json.loads(file.read_text())
        requests = requests["requests"] if isinstance(requests, dict) else requests
        (body,) = (one["json"] for one in requests if one["path"].endswith("/webhook"))
        body = copy.deepcopy(body)
        body["project"] |= {"token": SECRET, "task_data_password": SECRET, "task_data_login": SECRET}
        return dict(body)

    return read


@pytest.fixture
def serve_capture() -> Iterator[Callable[..., tuple[httpx.Client, Capture]]]:
    """serve_capture(store, learn=None) -> a client of a server that captures into the store."""
    running: list[tuple[uvicorn.Server, threading.Thread, httpx.Client]] = []

    def start(store: Store, learn: Learn | None = None) -> tuple[httpx.Client, Capture]:
        capture = Capture(store, learn)
        server = uvicorn.Server(uvicorn.Config(_app(capture), port=0, log_config=None))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server stopped while starting"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        running.append((server, thread, client))
        return client, capture

    yield start
    for server, thread, client in running:
        client.close()
        server.should_exit = True
        thread.join(20)


def _app(capture: Capture) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        capture.start()
        yield
        capture.close()

    app = FastAPI(lifespan=lifespan)
    app.include_router(webhook_router(capture.writer, 1_000_000))
    return app


@pytest.fixture
def settle() -> Callable[[Store], int]:
    """settle(store) waits until all events are processed, and gives their number."""

    def wait(store: Store) -> int:
        deadline = time.monotonic() + 60
        while True:
            with store.read() as session:
                if waiting_events(session) == 0:
                    return session.scalars(select(func.count()).select_from(InboxEvent)).one()
            assert time.monotonic() < deadline, "events are not processed"
            time.sleep(0.02)

    return wait


class CaptureProcess:
    """A server that captures, in a process that can be killed."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid = pid
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
            while True:
                os.kill(self._pid, 0)
                time.sleep(0.005)
        self.client.close()


@pytest.fixture
def start_process(store_url: str) -> Iterator[Callable[[], CaptureProcess]]:
    """start_process() -> one more server process on the store, within milliseconds: it is forked from one
    that has imported everything."""
    started: list[CaptureProcess] = []
    with subprocess.Popen(
        [sys.executable, __file__, store_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        stdin, stdout = parent.stdin, parent.stdout

        def start() -> CaptureProcess:
            stdin.write("start\n")
            stdin.flush()
            pid, port = map(int, stdout.readline().split())
            started.append(CaptureProcess(pid, port))
            return started[-1]

        yield start
        for process in started:
            process.kill()
        stdin.close()


def _serve_for_each_line(url: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    for _ in sys.stdin:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        pid = os.fork()
        if pid == 0:
            app = _app(Capture(open_store(url)))
            uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listener])
            os._exit(0)
        print(pid, listener.getsockname()[1], flush=True)
        listener.close()


if __name__ == "__main__":
    _serve_for_each_line(sys.argv[1])
