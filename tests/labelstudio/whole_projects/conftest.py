"""As much of Label Studio's REST API as the labelling commands use, over real HTTP, with faults on demand.

Filters, silent dropping of predictions that do not fit, and statuses are those of Label Studio 1.23.2.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

TOKEN = "0123456789abcdef0123456789abcdef01234567"


class FakeLabelStudio:
    """One project, number 7. ``fault(method, path, number, when)`` is asked before and after each request is
    carried out; what it returns, (status, headers), is answered instead."""

    def __init__(self, label_config: str, tasks: list[dict[str, Any]]) -> None:
        self.label_config = label_config
        self.tasks = dict(enumerate(tasks, start=1))
        self.predictions: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.refused_tasks: set[int] = set()
        self.dropped_tasks: set[int] = set()
        self.fault: Callable[[str, str, int, str], tuple[int, dict[str, str]] | None] = lambda *about: None
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.token = TOKEN
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def versions(self) -> dict[int, list[str]]:
        """The model versions that each task has predictions of."""
        return {
            task: [entry["model_version"] for entry in self.predictions if entry["task"] == task]
            for task in self.tasks
        }

    def answer(
        self, method: str, path: str, query: dict[str, str], body: Any, token: str
    ) -> tuple[int, Any, dict[str, str]]:
        with self._lock:
            self.requests.append((method, path))
            number = self._counts[method, path] = self._counts.get((method, path), 0) + 1
        early = self.fault(method, path, number, "before")
        if early is not None:
            return early[0], {"detail": "as the test wants"}, early[1]
        with self._lock:
            done = self._carry_out(method, path, query, body, token)
        late = self.fault(method, path, number, "after")
        if late is not None:
            return late[0], {"detail": "as the test wants"}, late[1]
        return *done, {}

    def _carry_out(
        self, method: str, path: str, query: dict[str, str], body: Any, token: str
    ) -> tuple[int, Any]:
        if token != f"Token {TOKEN}":
            return 401, {"detail": "Invalid token."}
        if (method, path) == ("GET", "/api/projects/7/"):
            return 200, {"id": 7, "label_config": self.label_config, "model_version": ""}
        if (method, path) == ("GET", "/api/ml/"):
            return 200, []
        if (method, path) == ("GET", "/api/tasks") and query["project"] == "7":
            found = self._find(json.loads(query["query"]))
            page = found[: int(query["page_size"])]
            whole = query.get("fields") == "all"
            return 200, {"total": len(found), "tasks": [self._task(task, whole) for task in page]}
        if (method, path) == ("POST", "/api/projects/7/import/predictions"):
            return self._import(body)
        if (method, path) == ("GET", "/api/predictions/"):
            return 200, [entry for entry in self.predictions if entry["task"] == int(query["task"])]
        if method == "DELETE" and path.startswith("/api/predictions/"):
            number = int(path.split("/")[3])
            self.predictions = [entry for entry in self.predictions if entry["id"] != number]
            return 204, None
        if method == "GET" and path in self.files:
            return 200, self.files[path]
        return 404, {"detail": "Not found."}

    def _task(self, task: int, whole: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"id": task, "data": self.tasks[task]}
        if whole:
            for name in ("annotations", "predictions"):
                found[name] = [one for one in getattr(self, name) if one["task"] == task]
        return found

    def _count(self, task: int, cancelled: bool) -> int:
        return sum(one["task"] == task and one["was_cancelled"] is cancelled for one in self.annotations)

    def _find(self, query: dict[str, Any]) -> list[int]:
        assert query["ordering"] == ["tasks:id"]
        assert query["filters"]["conjunction"] == "and"
        versions = self.versions()

        def holds(task: int, item: dict[str, Any]) -> bool:
            value, rule = item["value"], (item["filter"].removeprefix("filter:tasks:"), item["operator"])
            if rule == ("id", "greater"):
                return task > value
            if rule == ("id", "in_list"):
                return task in value
            if rule == ("predictions_model_versions", "contains"):
                return any(value[0] in version for version in versions[task])
            if rule == ("predictions_model_versions", "not_contains"):
                return not any(value[0] in version for version in versions[task])
            if rule == ("total_predictions", "equal"):
                return len(versions[task]) == value
            if rule == ("total_annotations", "greater"):
                return self._count(task, False) > value
            if rule == ("total_annotations", "equal"):
                return self._count(task, False) == value
            if rule == ("cancelled_annotations", "greater"):
                return self._count(task, True) > value
            if rule == ("data.site", "equal"):
                return self.tasks[task].get("site") == value
            raise AssertionError(f"unknown filter {item}")

        return [task for task in self.tasks if all(holds(task, item) for item in query["filters"]["items"])]

    def _import(self, body: list[dict[str, Any]]) -> tuple[int, Any]:
        if any(entry["task"] not in self.tasks or entry["task"] in self.refused_tasks for entry in body):
            return 400, {"detail": "Validation error", "validation_errors": {"non_field_errors": ["bad"]}}
        kept = [entry for entry in body if entry["task"] not in self.dropped_tasks]
        for entry in kept:
            self.predictions.append({"id": max([0, *(p["id"] for p in self.predictions)]) + 1, **entry})
        return 201, {"created": len(kept)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeLabelStudio

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        status, content, headers = self.fake.answer(
            self.command,
            url.path,
            query,
            json.loads(body) if body else None,
            self.headers.get("Authorization", ""),
        )
        data = (
            content
            if isinstance(content, bytes)
            else json.dumps(content).encode()
            if content is not None
            else b""
        )
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client was killed
            self.close_connection = True

    do_POST = do_DELETE = do_PATCH = do_GET


@pytest.fixture
def new_fake(config_xml: str) -> Iterator[Callable[[int], FakeLabelStudio]]:
    """A function that starts a Label Studio with so many tasks in project 7, each with its own image."""
    started: list[FakeLabelStudio] = []

    def start(count: int) -> FakeLabelStudio:
        tasks = [
            {"image": f"/data/upload/7/{number}.png", "site": "north" if number % 2 else "south"}
            for number in range(1, count + 1)
        ]
        fake = FakeLabelStudio(config_xml, tasks)
        for number in range(1, count + 1):
            buffer = io.BytesIO()
            Image.new("RGB", (40 + number, 30), (number, 9, 9)).save(buffer, "PNG")
            fake.files[f"/data/upload/7/{number}.png"] = buffer.getvalue()
        started.append(fake)
        return fake

    yield start
    for fake in started:
        fake.stop()
