"""Requests that the backend must not take, over real HTTP: malformed, too large, without the password."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from groundingml.labelstudio import Settings

Serve = Callable[..., httpx.Client]
Body = Callable[..., dict[str, Any]]


@pytest.fixture
def backend(serve: Serve, detector: Any, allow: tuple[str, ...]) -> httpx.Client:
    return serve(Settings(allow_hosts=allow), detector)


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/setup", b"", 400),
        ("/setup", b"{", 400),
        ("/setup", b"[]", 400),
        ("/setup", b"{}", 400),
        ("/setup", b'{"schema": 3}', 400),
        ("/setup", b"[" * 100_000, 400),
        ("/setup", b'{"schema": "\xff"}', 400),
        ("/predict", b"{}", 400),
        ("/predict", b'{"label_config": "<View"}', 422),
        ("/nothing", b"{}", 404),
    ],
)
def test_malformed_requests(backend: httpx.Client, path: str, content: bytes, status: int) -> None:
    answer = backend.post(path, content=content)
    assert answer.status_code == status
    assert isinstance(answer.json(), dict)
    assert "Traceback" not in answer.text


def test_tasks_that_are_no_list(backend: httpx.Client, predict_body: Body) -> None:
    assert backend.post("/predict", json={**predict_body(), "tasks": None}).status_code == 400
    assert backend.post("/predict", json=predict_body()).json()["results"] == []
    assert backend.post("/predict", json={**predict_body(), "params": None}).status_code == 200


def test_webhooks_are_acknowledged_with_an_object(backend: httpx.Client) -> None:
    event = {"action": "START_TRAINING", "project": {"id": 1}}
    answer = backend.post("/webhook", json=event)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    refused = backend.post("/webhook", content=b"[]")
    assert (refused.status_code, type(refused.json())) == (400, dict)


def test_large_bodies_are_refused(serve: Serve, detector: Any) -> None:
    backend = serve(Settings(max_body_bytes=1000), detector)
    for path in ("/webhook", "/predict", "/setup"):
        assert backend.post(path, content=b" " * 1001).status_code == 413


def test_basic_auth_guards_all_but_health(serve: Serve, detector: Any, config_xml: str) -> None:
    backend = serve(Settings(basic_auth_user="ann", basic_auth_password="geheim:ß"), detector)
    assert backend.get("/health").status_code == 200

    def basic(text: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    wrong = [
        {},
        basic("ann:wrong"),
        basic("bob:geheim:ß"),
        basic("ann:geheim:ß2"),
        basic("ann"),
        {"Authorization": "Basic !!!"},
        {"Authorization": "Bearer " + basic("ann:geheim:ß")["Authorization"].split()[1]},
    ]
    for method, path in (
        ("POST", "/setup"),
        ("POST", "/predict"),
        ("POST", "/webhook"),
        ("GET", "/versions"),
        ("GET", "/x"),
    ):
        for headers in wrong:
            answer = backend.request(method, path, headers=headers, json={"schema": config_xml})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic")
    right = basic("ann:geheim:ß")
    assert backend.post("/setup", headers=right, json={"schema": config_xml}).status_code == 200
    assert backend.get("/versions", headers=right).status_code == 200
