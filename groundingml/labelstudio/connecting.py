"""Connect a project to a backend: the connection, and a webhook that shows who it is.

Label Studio makes the webhook by itself when a backend is added, but without credentials. Doing it again
changes what differs and nothing else.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from groundingml.labelstudio.api_client import ApiError, LabelStudioApi, Refused
from groundingml.labelstudio.auth import SECRET_HEADER
from groundingml.labelstudio.backend_checks import ALLOW_PRIVATE, bare_url


class ConnectError(RuntimeError):
    """The project could not be connected. The message says why and what to do."""


@dataclass(frozen=True)
class Connected:
    """What a connection came to be. ``changed`` says what was done, in words; empty for nothing."""

    project: str
    backend_id: int
    model_version: str | None
    webhook_id: int
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Credentials:
    """What the backend asks for; None for what it does not."""

    user: str | None = None
    password: str | None = None
    webhook_secret: str | None = None

    @property
    def webhook_headers(self) -> dict[str, str]:
        """Headers with which a webhook shows that it may."""
        headers = {}
        if self.user is not None:
            pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        if self.webhook_secret is not None:
            headers[SECRET_HEADER] = self.webhook_secret
        return headers


def connect_backend(
    api: LabelStudioApi, project: int, url: str, credentials: Credentials, title: str = "groundingml"
) -> Connected:
    """Add the backend at ``url`` (as Label Studio reaches it) to a project, or bring its connection up to
    date; then see to its webhook.

    Raises:
        ConnectError: Label Studio refuses the backend or its webhook.
        ApiError: Label Studio cannot be used.
    """
    url = url.rstrip("/")
    changed: list[str] = []
    name = api.project(project).get("title") or str(project)
    same = [one for one in api.backends(project) if bare_url(one["url"]) == bare_url(url)]
    wanted: dict[str, Any] = {"url": url, "is_interactive": True, "auth_method": "NONE"}
    if credentials.user is not None:
        wanted |= {"auth_method": "BASIC_AUTH", "basic_auth_user": credentials.user}
    try:
        if not same:
            body = {**wanted, "project": project, "title": title, "basic_auth_pass": credentials.password}
            backend = api.request("POST", "/api/ml/", body=_without_none(body), patient=False)
            changed.append(f"{bare_url(url)} was connected")
        else:
            backend = same[-1]
            differs = any(backend.get(key) != value for key, value in wanted.items())
            # The password is not shown, so it is written each time.
            if differs or credentials.password is not None:
                body = {**wanted, "project": project, "basic_auth_pass": credentials.password}
                path = f"/api/ml/{backend['id']}"
                backend = api.request("PATCH", path, body=_without_none(body), patient=False)
            if differs:
                changed.append("the connection was brought up to date")
    except Refused as error:
        raise ConnectError(_reason(str(error), url)) from error
    hook = _webhook(api, project, url, credentials.webhook_headers, changed)
    version = api.get(f"/api/ml/{backend['id']}").get("model_version")
    return Connected(name, int(backend["id"]), version, hook, tuple(changed))


def _webhook(api: LabelStudioApi, project: int, url: str, headers: dict[str, str], changed: list[str]) -> int:
    """Bring the project's webhooks of this backend up to date, or make one; the id of the newest."""
    path = f"{bare_url(url)}/webhook"
    hooks = [one for one in api.get("/api/webhooks/", project=project) if bare_url(one["url"]) == path]
    wanted = {"send_payload": True, "send_for_all_actions": True, "is_active": True, "headers": headers}
    try:
        if not hooks:
            body = {**wanted, "project": project, "url": f"{url}/webhook"}
            hook = api.request("POST", "/api/webhooks/", body=body, patient=False)
            changed.append("a webhook was made")
            return int(hook["id"])
        for hook in hooks:
            if any(hook.get(key) != value for key, value in wanted.items()):
                api.request("PATCH", f"/api/webhooks/{hook['id']}/", body=wanted, patient=False)
                changed.append("the webhook got the credentials" if headers else "the webhook was put right")
    except Refused as error:
        raise ConnectError(
            f"The backend is connected, but Label Studio refuses its webhook ({error}); {ALLOW_PRIVATE}."
        ) from error
    return max(int(hook["id"]) for hook in hooks)


def _without_none(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if value is not None}


def _reason(said: str, url: str) -> str:
    if "reserved network address" in said:
        return f"Label Studio refuses {bare_url(url)}: it is a private address; {ALLOW_PRIVATE}."
    if "401" in said or "authentication parameters" in said:
        return (
            f"{bare_url(url)} asks for a password: give --basic-auth-user and --basic-auth-pass-file of "
            "groundingml serve."
        )
    return (
        f"Label Studio cannot use {bare_url(url)}: {said}. Is groundingml serve running there, and can Label "
        "Studio's machine or container reach that address?"
    )


__all__ = ["ApiError", "ConnectError", "Connected", "Credentials", "connect_backend"]
