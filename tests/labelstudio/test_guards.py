"""What stands before the routes: credentials, secrets of webhooks, request ids, no doors left open."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import httpx
import pytest

from groundingml.labelstudio import Settings, SettingsError

SECRET = "0123456789abcdef-secret"
EVENT = {"action": "PROJECT_UPDATED", "project": {"id": 1}}


@pytest.mark.parametrize("has_password", [True, False])
def test_a_webhook_shows_its_secret_in_a_header_or_in_the_path(
    serve: Any, detector: Any, has_password: bool, config_xml: str
) -> None:
    password = {"basic_auth_user": "ann", "basic_auth_password": "pw"} if has_password else {}
    backend: httpx.Client = serve(Settings(webhook_secret=SECRET, **password), detector)
    ann = httpx.BasicAuth("ann", "pw")

    def status(path: str, **request: Any) -> int:
        return backend.post(path, json=EVENT, **request).status_code

    assert status("/webhook") == 401
    assert status("/webhook", headers={"X-Webhook-Secret": SECRET[:-1]}) == 401
    assert status("/webhook", headers={"X-Webhook-Secret": ""}) == 401
    assert status("/webhook", headers={"X-Webhook-Secret": SECRET}) == 200
    assert status(f"/{SECRET}/webhook") == 200
    assert status(f"/{SECRET[:-1]}/webhook", auth=ann) == 404
    assert status("/webhook", auth=ann) == (200 if has_password else 401)
    # The secret opens webhooks, and nothing that asks for the password.
    body = {"schema": config_xml}
    opened = backend.post(f"/{SECRET}/setup", json=body, headers={"X-Webhook-Secret": SECRET})
    assert opened.status_code == (401 if has_password else 200)
    assert backend.post(f"/{SECRET}/setup", json=body, auth=ann).status_code == 200
    assert backend.get("/health").status_code == backend.get(f"/{SECRET}/health").status_code == 200


@pytest.mark.parametrize(
    "secret", ["short", "has a space in it ...", "slash/slash/slash/slash", "a" * 201, ""]
)
def test_a_secret_that_would_not_do_is_refused(secret: str) -> None:
    with pytest.raises(SettingsError, match="openssl rand"):
        Settings(webhook_secret=secret)


def test_every_answer_has_a_request_id(serve: Any, detector: Any) -> None:
    backend = serve(Settings(basic_auth_user="ann", basic_auth_password="pw"), detector)
    assert (
        backend.get("/health", headers={"X-Request-ID": "from-proxy.7"}).headers["x-request-id"]
        == "from-proxy.7"
    )
    made = [backend.get(path).headers["x-request-id"] for path in ("/health", "/", "/none")]
    assert len(set(made)) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in made)
    odd = backend.get("/health", headers={"X-Request-ID": "a b\tc" + "x" * 80}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", odd)


def test_other_sites_are_not_let_in(serve: Any, detector: Any) -> None:
    backend = serve(Settings(), detector)
    foreign = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (backend.get("/health", headers=foreign), backend.options("/predict", headers=foreign)):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert backend.options("/predict", headers=foreign).status_code == 405
    for path in ("/docs", "/redoc", "/openapi.json", "/../etc/passwd", "//etc/passwd"):
        assert backend.get(path).status_code == 404


def test_an_unexpected_error_says_nothing_of_the_inside(
    serve: Any,
    detector: Any,
    monkeypatch: pytest.MonkeyPatch,
    config_xml: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("/home/ann/secret.txt")

    backend = serve(Settings(), detector)
    monkeypatch.setattr("groundingml.labelstudio.predict_api.model_version", fail)
    answer = backend.post("/setup", json={"schema": config_xml})
    assert answer.status_code == 500
    assert answer.json() == {"error": "Something went wrong; the server's log says what."}
    assert "Traceback" not in answer.text


def test_too_many_requests_at_once_are_told_when_to_come_back(
    serve: Any, detector: Any, allow: Any, pictures: Any, predict_body: Any
) -> None:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    backend = serve(Settings(allow_hosts=allow, most_requests=2), detector)
    running, finish = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        running.set()
        assert finish.wait(30)

    detector.before = hold
    urls = pictures(4)
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(backend.post, "/predict", json=predict_body(url)) for url in urls[:2]]
        try:
            assert running.wait(20)
            while "waiting 1" not in backend.get("/metrics").text:
                pass
            refused = backend.post("/predict", json=predict_body(urls[2]))
            assert refused.status_code == 503
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            typed = {"id": "x", "from_name": "prompt", "to_name": "image", "type": "textarea"}
            context = {"result": [{**typed, "value": {"text": ["cat"]}}]}
            prompt = pool.submit(backend.post, "/predict", json=predict_body(urls[3], context=context))
        finally:
            finish.set()
        assert [one.result().status_code for one in (*held, prompt)] == [200, 200, 200]
    assert "groundingml_requests_refused_total 1.0" in backend.get("/metrics").text


def test_more_than_a_request_has_time_for_is_asked_for_one_by_one(
    serve: Any, detector: Any, allow: Any, pictures: Any, predict_body: Any
) -> None:
    """Label Studio asks for each task alone when it gets a single result for several."""
    import time

    backend = serve(Settings(allow_hosts=allow, predict_budget_s=1.0), detector)
    detector.before = lambda image: time.sleep(0.15)
    urls = pictures(30)
    results = backend.post("/predict", json=predict_body(*urls)).json()["results"]
    assert len(results) == 1
    assert "result" not in results[0], "nothing that could be taken for an empty prediction"
    assert len(detector.asked) < 15, "found out from the first ones"
    began = len(detector.asked)
    assert len(backend.post("/predict", json=predict_body(*urls)).json()["results"]) == 1
    assert len(detector.asked) == began, "known from before"
    for url in urls[-2:]:
        assert "result" in backend.post("/predict", json=predict_body(url)).json()["results"][0]
    assert len(backend.post("/predict", json=predict_body(*urls[:3])).json()["results"]) == 3


def test_the_log_hides_secrets_and_keeps_to_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from groundingml.labelstudio.server_log import LineFormatter

    jwt = "eyJhbGciOi.eyJzdWIiOiIx.c2lnbmF0dXJl"
    legacy = "0123456789abcdef0123456789abcdef01234567"
    record = logging.LogRecord(
        "groundingml.x", logging.WARNING, "/w/x.py", 1,
        "sent %s to http://ann:pass@host/ with Token %s\nand Bearer abcdefghij, %s",
        ("my-key", legacy, jwt), None,
    )  # fmt: skip
    for log_format in ("text", "json"):
        line = LineFormatter(log_format, ["my-key", None]).format(record)  # type: ignore[arg-type]
        assert "\n" not in line
        for secret in ("my-key", legacy, jwt, "ann:pass", "abcdefghij"):
            assert secret not in line
        assert "host" in line
    fields = json.loads(LineFormatter("json").format(record))
    assert set(fields) == {"time", "level", "logger", "message"}
    assert fields["level"] == "warning"


def test_an_error_is_one_line_unless_details_are_asked_for() -> None:
    from groundingml.labelstudio.server_log import LineFormatter

    try:
        json.loads("{")
    except ValueError:
        import sys

        record = logging.LogRecord("x", logging.ERROR, "/w/x.py", 1, "It failed", (), sys.exc_info())
    short = LineFormatter("text").format(record)
    assert "It failed: JSONDecodeError: Expecting" in short
    assert "\n" not in short
    assert not re.search(r"File \"|/json/", short), "no path"
    assert "Traceback" in LineFormatter("text", with_traceback=True).format(record)
