"""Tokens, patience and errors of the API client, against a real web server."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from groundingml.labelstudio.api_client import LabelStudioApi, Refused, Unavailable


def jwt(name: str, lifetime: int = 300) -> str:
    claims = json.dumps({"iat": 1000, "exp": 1000 + lifetime, "name": name}).encode()
    return f"eyJh.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


def test_a_personal_token_is_exchanged_and_renewed(site: Any) -> None:
    given = iter([jwt("first"), jwt("second")])
    site.pages["/api/token/refresh/"] = lambda *_: (200, {}, json.dumps({"access": next(given)}).encode())

    def guarded(_: Any, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        return (
            (200, {}, b'{"x": 1}')
            if headers["authorization"] == f"Bearer {jwt('second')}"
            else (401, {}, b"")
        )

    site.pages["/api/x"] = guarded
    api = LabelStudioApi(site.url, jwt("refresh"))
    assert api.token_kind == "personal"
    assert api.get("/api/x") == {"x": 1}
    assert api.get("/api/x") == {"x": 1}
    refreshes = [body for _, path, _, body in site.requests if path == "/api/token/refresh/"]
    assert [json.loads(body) for body in refreshes] == [{"refresh": jwt("refresh")}] * 2


def test_a_revoked_personal_token_is_refused_at_once(site: Any) -> None:
    site.add("/api/token/refresh/", b"{}", status=401)
    with pytest.raises(Refused, match="did not accept the personal access token"):
        LabelStudioApi(site.url, jwt("refresh"), pause=lambda _: pytest.fail("no waiting")).get("/api/x")


def test_retry_after_is_kept_to(site: Any) -> None:
    answers = iter([(503, {"Retry-After": "7"}, b""), (429, {}, b""), (200, {}, b"[]")])
    site.pages["/api/x"] = lambda *_: next(answers)
    waits: list[float] = []
    api = LabelStudioApi(site.url, "a" * 40, pauses_s=(1, 2, 4), pause=waits.append)
    assert api.get("/api/x") == []
    assert waits == [7, 2]
    assert site.tokens() == [f"Token {'a' * 40}"] * 3


def test_errors_name_the_reason_and_no_token(site: Any) -> None:
    site.add("/api/x", b'{"detail": "Not found."}', status=404)
    site.add("/api/y", b"", status=302, Location="http://elsewhere.example/login")
    site.add("/api/z", b"<html>")
    api = LabelStudioApi(site.url, "a" * 40, pauses_s=())
    for path, said in (("/api/x", "404: Not found."), ("/api/y", "elsewhere.example"), ("/api/z", "address")):
        with pytest.raises(Refused, match=said) as caught:
            api.get(path)
        assert "aaaa" not in str(caught.value)


def test_a_server_that_is_not_there(site: Any) -> None:
    waits: list[float] = []
    api = LabelStudioApi("http://127.0.0.1:1", None, pauses_s=(1, 2), pause=waits.append)
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        api.get("/api/x")
    assert caught.value.status is None
    assert waits == [1, 2]
