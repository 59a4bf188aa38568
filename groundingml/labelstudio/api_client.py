"""Label Studio's REST API for the commands: one origin, either kind of token, patience with a busy server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from groundingml.labelstudio.access import LabelStudioAccess, TokenRefused
from groundingml.labelstudio.addresses import AddressRules, FetchError, Origin
from groundingml.labelstudio.bounded_http import BoundedHttp

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Waits between the attempts of one request; a server that is restarted is back within them."""
LONGEST_PAUSE_S = 60.0
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_TOKEN_ANSWER_BYTES = 1_000_000


class ApiError(RuntimeError):
    """Label Studio did not do what was asked. The message says why, without any token."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Refused(ApiError):
    """It answered, and trying again would not help: no permission, no such project, a bad request."""


class Unavailable(ApiError):
    """It did not answer, or said that it cannot now; ``status`` is None when nothing came back at all."""

    def __init__(self, message: str, status: int | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(message, status)
        self.retry_after_s = retry_after_s


class LabelStudioApi:
    """A client for one Label Studio. May be used from several threads."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        timeout_s: float = 60.0,
        pauses_s: Sequence[float] = PAUSES_S,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """``url`` is where Label Studio is, such as http://localhost:8080; ``pause`` waits for some seconds.

        Raises:
            FetchError: when ``url`` is no http(s) URL.
        """
        self.url = url.rstrip("/")
        self.pauses_s = tuple(pauses_s)
        self.pause = pause
        self._timeout_s = timeout_s
        own = Origin.of(urlsplit(self.url))
        self._access = LabelStudioAccess(
            self.url, api_key, BoundedHttp(AddressRules(own, ()), _TOKEN_ANSWER_BYTES)
        )
        # Redirects are not followed and proxies not asked, so the token reaches this origin only.
        self._http = httpx.Client(timeout=timeout_s, trust_env=False)

    @property
    def token_kind(self) -> str:
        """ "legacy", "personal" or "none"."""
        if not self._access.has_token:
            return "none"
        return "personal" if self._access.is_personal_token else "legacy"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """The decoded answer to a GET, with patience."""
        return self.request("GET", path, params=params)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        patient: bool = True,
        timeout_s: float | None = None,
    ) -> Any:
        """One API call; the decoded JSON, or None for an empty answer.

        Args:
            patient: try again, after growing pauses, while the server is unavailable. Not for calls that must
                not happen twice.

        Raises:
            Refused: the server answered with an error that stays.
            Unavailable: it did not answer, or with a server error, at the last attempt too.
        """
        for wait in self.pauses_s if patient else ():
            try:
                return self._once(method, path, params, body, timeout_s or self._timeout_s)
            except Unavailable as error:  # noqa: PERF203
                self.pause(max(wait, error.retry_after_s))
        return self._once(method, path, params, body, timeout_s or self._timeout_s)

    # What the commands ask, by name.

    def project(self, project: int) -> dict[str, Any]:
        """One project: title, label_config, model_version, ..."""
        found: dict[str, Any] = self.get(f"/api/projects/{project}/")
        return found

    def tasks(
        self, project: int, filters: Sequence[dict[str, Any]], page_size: int, *, whole: bool = False
    ) -> tuple[list[dict[str, Any]], int]:
        """The first tasks by id for which all Data Manager ``filters`` hold, and how many there are.

        ``whole``: with their annotations and predictions.
        """
        query = {"filters": {"conjunction": "and", "items": list(filters)}, "ordering": ["tasks:id"]}
        found = self.get(
            "/api/tasks",
            project=project,
            page=1,
            page_size=page_size,
            query=json.dumps(query, separators=(",", ":")),
            **({"fields": "all"} if whole else {}),
        )
        return list(found["tasks"]), int(found["total"])

    def backends(self, project: int) -> list[dict[str, Any]]:
        """The ML backends a project is connected to, each just checked by Label Studio, newest last."""
        return sorted(self.get("/api/ml/", project=project), key=lambda backend: int(backend["id"]))

    def import_predictions(self, project: int, predictions: Sequence[dict[str, Any]]) -> int:
        """Store predictions, tried once only; how many were taken.

        Label Studio leaves out, without saying so, those that do not fit the label config.
        """
        path = f"/api/projects/{project}/import/predictions"
        return int(self.request("POST", path, body=list(predictions), patient=False)["created"])

    def predictions_of(self, task: int) -> list[dict[str, Any]]:
        """All predictions of a task."""
        return list(self.get("/api/predictions/", task=task))

    def delete_prediction(self, prediction: int) -> None:
        """Remove a prediction; one that is gone already is no error."""
        try:
            self.request("DELETE", f"/api/predictions/{prediction}/")
        except Refused as error:
            if error.status != 404:
                raise

    def _once(self, method: str, path: str, params: Any, body: Any, timeout_s: float) -> Any:
        answer = self._send(method, path, params, body, timeout_s, renew=False)
        if answer.status_code == 401 and self._access.is_personal_token:
            answer = self._send(method, path, params, body, timeout_s, renew=True)
        if answer.is_success:
            return self._decoded(answer)
        if answer.status_code in _BUSY:
            raise Unavailable(
                f"Label Studio answered {method} {path} with status {answer.status_code}",
                answer.status_code,
                _seconds(answer.headers.get("Retry-After", "")),
            )
        raise Refused(self._reason(method, path, answer), answer.status_code)

    def _send(
        self, method: str, path: str, params: Any, body: Any, timeout_s: float, *, renew: bool
    ) -> httpx.Response:
        try:
            headers = self._access.authorization(time.monotonic() + timeout_s, renew=renew)
            return self._http.request(
                method,
                self.url + path,
                params=params or None,
                json=body,
                headers={**headers, "Accept": "application/json"},
                timeout=timeout_s,
            )
        except TokenRefused as error:
            raise Refused(str(error), 401) from error
        except httpx.TimeoutException as error:
            raise Unavailable(f"{self.url} did not answer {method} {path} in time") from error
        except (httpx.TransportError, FetchError) as error:
            raise Unavailable(f"{self.url} cannot be reached ({error})") from error

    def _decoded(self, answer: httpx.Response) -> Any:
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as error:
            raise Refused(
                f"{self.url} did not answer as Label Studio does; check the address", answer.status_code
            ) from error

    def _reason(self, method: str, path: str, answer: httpx.Response) -> str:
        status = answer.status_code
        if status == 401:
            return "Label Studio did not accept the API key"
        if answer.has_redirect_location:
            return f"{self.url} redirects to {urlsplit(answer.headers['Location']).netloc or 'another page'}"
        detail = _detail(answer)
        if status == 403 and "reserved network address" not in detail:
            return f"the user of this API key may not do this ({method} {path})"
        return f"Label Studio answered {method} {path} with status {status}{detail and f': {detail}'}"


def _seconds(retry_after: str) -> float:
    return min(float(retry_after), LONGEST_PAUSE_S) if retry_after.isdecimal() else 0.0


def _detail(answer: httpx.Response) -> str:
    """What an error answer of Label Studio says, on one line."""
    try:
        body = answer.json()
    except ValueError:
        return ""
    if isinstance(body, dict):
        body = body.get("validation_errors") or body.get("detail") or ""
    text = " ".join(body.split()) if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    return text[:500]
