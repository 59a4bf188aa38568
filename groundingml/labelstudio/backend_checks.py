"""Checks of an ML backend from Label Studio's side: connection, webhook, and what the webhook carries."""

from __future__ import annotations

import time
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from groundingml.labelstudio.api_client import ApiError, LabelStudioApi

Result = tuple[Literal["ok", "warn", "fail", "skip"], str, str]
TRIAL_TITLE = "groundingml doctor (temporary)"
ALLOW_PRIVATE = (
    "start Label Studio with both ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false, "
    "then connect the model again"
)
_TRIAL_CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="Cat"/></RectangleLabels></View>'
)
_RECONNECT = "groundingml connect --project NUMBER --backend-url URL puts it right, or Settings, Webhooks"
_WEBHOOK_LIMIT_S = 1.0  # Label Studio gives up then, and does not try again


class BackendChecks:
    """Asked in the order of its methods; each remembers what the next one needs."""

    def __init__(self, api: LabelStudioApi, project: int | None, backend_url: str | None) -> None:
        self._api = api
        self._project = project
        self._url = backend_url.rstrip("/") if backend_url else None
        self._hooks: list[dict[str, Any]] = []
        self._known: dict[str, Any] | None = None
        self.connected: dict[str, Any] | None = None
        """The backend as Label Studio describes it, when the project is connected to it."""

    @property
    def extra_params(self) -> Any:
        """Options that the project's connection adds to its label config."""
        return self._known["extra_params"] if self._known is not None else None

    def connection(self, label_config: str | None) -> Result:
        """Whether Label Studio reaches the backend; an address it does not have yet is tried and removed."""
        backends = self._api.backends(self._project) if self._project is not None else []
        if self._url is not None:
            backends = [one for one in backends if bare_url(one["url"]) == bare_url(self._url)]
            if not backends:
                return self._try(label_config)
        if not backends:
            return (
                "skip" if self._project is None else "warn",
                "no model is connected to the project" if self._project else "no backend is given",
                "connect it with groundingml connect --project NUMBER --backend-url URL, or under Settings, "
                "Model; doctor --backend-url URL tries whether that can work",
            )
        backend = self._known = backends[-1]
        self._hooks = self._hooks_of(self._project, backend["url"])
        if backend["state"] in ("CO", "TR", "PR"):
            self.connected = backend
            return "ok", f"{backend['url']} is connected, version {backend['model_version']}", ""
        said = backend.get("error_message") or ""
        return _explain(said, backend["url"], unreachable=backend["state"] == "DI")

    def webhook(self) -> Result:
        """Whether corrections reach the backend at all."""
        if self._known is None:
            return "skip", "needs a backend that is connected", ""
        url = self._known["url"]
        if not self._hooks:
            return (
                "fail",
                f"there is no webhook for {url}: corrections never arrive (Label Studio refused it when the "
                "model was connected, or it was removed)",
                f"{ALLOW_PRIVATE} (groundingml connect adds the webhook)",
            )
        hook = self._hooks[-1]
        if not hook["is_active"]:
            return "fail", "the webhook is switched off", _RECONNECT
        if not hook["send_payload"]:
            return "fail", "the webhook carries no payload", _RECONNECT
        needed = {"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED"}
        absent = needed - set(hook["actions"])
        if not hook["send_for_all_actions"] and absent:
            message = f"the webhook leaves out {', '.join(sorted(absent))}"
            return "warn", message, _RECONNECT
        return "ok", f"{hook['url']} is told of all corrections", ""

    def delivery(self) -> Result:
        """Send what the webhook would, with its headers, from this machine."""
        if not self._hooks:
            return "skip", "needs a webhook", ""
        hook = self._hooks[-1]
        started = time.monotonic()
        status = _post(hook["url"], hook.get("headers") or {})
        took = time.monotonic() - started
        if status is None:
            return (
                "warn",
                f"{hook['url']} cannot be reached from this machine, so this was not checked",
                "run groundingml doctor where Label Studio runs",
            )
        if status in (401, 403):
            return (
                "fail",
                "the backend asks for a password, and Label Studio sends none with webhooks: corrections are "
                "lost",
                "run groundingml connect with --basic-auth-user and --basic-auth-pass-file (or "
                "--webhook-secret-file) of the server",
            )
        if not 200 <= status < 300:
            return "fail", f"{hook['url']} answers with status {status}", "see the backend's log"
        if took > _WEBHOOK_LIMIT_S:
            return (
                "warn",
                f"the backend took {took:.1f} s; Label Studio gives up after {_WEBHOOK_LIMIT_S:.0f} s",
                "see what else the backend's machine is busy with",
            )
        host = urlsplit(hook["url"]).hostname or ""
        is_open = _post(_without_credentials(hook["url"]), {}) == status
        if is_open and host not in ("localhost", "127.0.0.1", "::1"):
            return (
                "warn",
                "the backend takes webhooks from anybody who can reach it",
                "start it with --webhook-secret-file, and give the same to groundingml connect",
            )
        guard = "without a password" if is_open else "with the password that it carries"
        return "ok", f"taken {guard} (sent from this machine, {took * 1000:.0f} ms)", ""

    def _try(self, label_config: str | None) -> Result:
        """Connect the backend to a project made for it, so that the real one stays as it is."""
        assert self._url is not None
        body = {"title": TRIAL_TITLE, "label_config": label_config or _TRIAL_CONFIG}
        trial = self._api.request("POST", "/api/projects/", body=body, patient=False)["id"]
        try:
            wanted = {"url": self._url, "project": trial, "title": "trial"}
            try:
                self._api.request("POST", "/api/ml/", body=wanted, patient=False)
            except ApiError as error:
                return _explain(str(error), self._url, unreachable="health check failed" in str(error))
            if not self._hooks_of(trial, self._url):
                return "fail", f"{self._url} connects, but gets no webhook", ALLOW_PRIVATE
        finally:
            self._api.request("DELETE", f"/api/projects/{trial}/")
        return (
            "warn",
            f"Label Studio can connect {self._url} (tried and removed), but the project does not have it",
            f"connect it with groundingml connect --project NUMBER --backend-url {bare_url(self._url)}",
        )

    def _hooks_of(self, project: int | None, backend_url: str) -> list[dict[str, Any]]:
        hooks = self._api.get("/api/webhooks/", project=project)
        return [hook for hook in hooks if bare_url(hook["url"]) == f"{bare_url(backend_url)}/webhook"]


def _explain(said: str, url: str, *, unreachable: bool) -> Result:
    """What Label Studio says of a backend that it cannot use, and the remedy."""
    if "reserved network address" in said:
        return "fail", f"Label Studio refuses {url}: it is a private address", ALLOW_PRIVATE
    if "401" in said or "authentication parameters" in said:
        return (
            "fail",
            f"{url} asks for a password that Label Studio does not send",
            "choose Basic auth in Settings, Model, with the user and password of groundingml serve",
        )
    if unreachable:
        if _answers(url):
            return (
                "fail",
                f"{url} answers this machine, but Label Studio cannot reach it",
                "connect an address that Label Studio's machine or container can reach (in a container, "
                "localhost is the container itself), and let groundingml serve listen there with --host",
            )
        return "fail", f"{url} answers neither Label Studio nor this machine", "start groundingml serve there"
    return "fail", f"Label Studio cannot use {url}: {said}", "see the backend's log"


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url.rstrip('/')}/health", timeout=5, trust_env=False).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _post(url: str, headers: dict[str, str]) -> int | None:
    """The status for an event that means nothing; None when nothing answers."""
    try:
        body = {"action": "GROUNDINGML_DOCTOR"}
        return httpx.post(url, json=body, headers=headers, timeout=10, trust_env=False).status_code
    except (httpx.HTTPError, httpx.InvalidURL):
        return None


def bare_url(url: str) -> str:
    """A URL as two of them are compared: without user, password and the last slash."""
    return _without_credentials(url).rstrip("/")


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
