"""The backend as a class for `label-studio-ml`, for those who deploy with `label-studio-ml start`.

It answers through the same application as `groundingml serve`, inside this process, so nothing is done twice
and nothing differs. Settings come from the same environment variables. Works under label-studio-ml 1.0.9 (the
last release on PyPI) and the 2.x line. What `label-studio-ml init --script` is given is two lines:

    from groundingml.labelstudio.sdk_backend import GroundingMLBackend, start
    start()

docs/deployment.md says more, also what 1.0.9 cannot do.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # another class before Python 3.11
from pathlib import Path
from typing import Any

import httpx
from label_studio_ml.model import LabelStudioMLBase

from groundingml.labelstudio.settings import Settings

ANSWER_S = 120.0
"""Label Studio itself gives up after 100 s."""
SETUP_S = 2.0
"""For /setup it waits three seconds; a version that is not known by then is None, and asked for again."""
_IS_OLD = "project_id" not in inspect.signature(LabelStudioMLBase.__init__).parameters


class PredictionFailed(RuntimeError):
    """The request could not be answered. The message says why."""


class GroundingMLBackend(LabelStudioMLBase):  # type: ignore[misc]  # it is untyped
    """Boxes for Label Studio's tasks and prompts.

    Label-studio-ml makes one for each project, or each request; they share one application, whose model is
    loaded once.
    """

    def __init__(
        self,
        project_id: str | None = None,
        label_config: str | None = None,
        train_output: Any = None,
        **kwargs: Any,
    ) -> None:
        if _IS_OLD:
            super().__init__(label_config=label_config, train_output=train_output, **kwargs)
        else:
            super().__init__(project_id=project_id, label_config=label_config)
        self._model = kwargs.get("model")
        self._project = project_id
        self._config = label_config
        request = _request_body()
        if request is not None and "schema" in request:
            # 1.0.9 makes the object anew in /setup, and then answers with a version of its own.
            self._project = _text(request.get("project"))
            _answer_with(self._setup_version(request.get("extra_params")))

    def setup(self) -> None:
        """Called by 2.x only: name the version of what predictions will be."""
        version = self._setup_version(getattr(self, "extra_params", None))
        if version is not None:
            self.set("model_version", version)

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Any = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """One item for each task: "result", "score" and "model_version", as the server's /predict answers.

        Raises:
            PredictionFailed: nothing could be predicted.
        """
        # 1.0.9 keeps the config of whichever project was set up last; the request has the right one.
        request = _request_body() or {}
        body = {
            "tasks": list(tasks),
            "project": request.get("project") or self._project or _project_of(tasks),
            "label_config": request.get("label_config") or self._config,
            "params": {"context": context},
        }
        answer = _application(self._model).post("/predict", body)
        if answer.status_code != 200:
            raise PredictionFailed(_reason(answer))
        decoded = answer.json()
        _answer_with(decoded.get("model_version"))
        return list(decoded["results"])

    def process_event(self, event: str, data: Any, job_id: Any, additional_params: Any) -> dict[str, Any]:
        """Called by 1.0.9 for every webhook, in a process of its own: keep it for the server's process."""
        from groundingml.labelstudio.inbox_writer import read_event
        from groundingml.store import open_store
        from groundingml.store.inbox import add_event

        with open_store(_store_url()) as store, store.begin() as session:
            add_event(session, *read_event(json.dumps({**data, "action": event}).encode()))
        return {}

    def fit(
        self, event_or_tasks: Any = None, data: Any = None, *, event: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Called by 2.x within the webhook, which has a second: keep the event, do nothing else."""
        action = event or event_or_tasks
        if isinstance(action, str) and isinstance(data, Mapping):
            self.process_event(action, data, None, None)
        return {}

    def _setup_version(self, extra_params: Any) -> str | None:
        if not self._config:
            return None
        body = {"project": self._project, "schema": self._config, "extra_params": extra_params}
        deadline = time.monotonic() + SETUP_S
        try:
            application = _application(self._model, SETUP_S)
            answer = application.post("/setup", body, deadline - time.monotonic())
        except TimeoutError:
            return None
        if answer.status_code != 200:
            raise PredictionFailed(_reason(answer))
        return _text(answer.json().get("model_version"))


def start(model: str | None = None) -> None:
    """Begin to load in the background. Otherwise the first request does."""
    # 1.0.9 handles each webhook in a new process, which imports everything again and needs no model.
    if multiprocessing.parent_process() is None:
        _begin(model)


class _Application:
    """The server's application on an event loop of its own, called in place of HTTP."""

    def __init__(self, settings: Settings, ready: Future[_Application]) -> None:
        self._settings = settings
        self._ready = ready
        self._loop = asyncio.new_event_loop()

    def post(self, path: str, body: Any, timeout_s: float = ANSWER_S) -> httpx.Response:
        """Ask the application, from any thread.

        Raises:
            TimeoutError: it has not answered in time.
        """
        answer = asyncio.run_coroutine_threadsafe(self._post(path, body), self._loop)
        try:
            return answer.result(timeout_s)
        except FutureTimeout as error:
            answer.cancel()
            raise TimeoutError(f"no answer to {path} within {timeout_s:.0f} s") from error

    async def _post(self, path: str, body: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://groundingml") as client:
            return await client.post(path, json=body, timeout=None)

    def run(self) -> None:
        """Start the application, and keep it as a web server does; it ends with the process."""
        from groundingml.labelstudio import create_app

        async def serve() -> None:
            self._app = create_app(self._settings)
            async with self._app.router.lifespan_context(self._app):
                self._ready.set_result(self)
                await asyncio.Event().wait()

        try:
            self._loop.run_until_complete(serve())
        except Exception as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)  # whoever asks for the application hears of it


_applications: dict[str | None, Future[_Application]] = {}
_applications_lock = threading.Lock()


def _begin(model: str | None) -> Future[_Application]:
    """The application of this process for a model; it is made once, in a thread of its own."""
    with _applications_lock:
        if model not in _applications:
            ready: Future[_Application] = Future()
            application = _Application(_settings(model), ready)
            threading.Thread(target=application.run, name="groundingml", daemon=True).start()
            _applications[model] = ready
        return _applications[model]


def _application(model: str | None, timeout_s: float = ANSWER_S) -> _Application:
    try:
        return _begin(model).result(timeout_s)
    except FutureTimeout as error:
        raise TimeoutError("the application is still starting") from error


def _settings(model: str | None) -> Settings:
    environment = os.environ
    data_dir = environment.get("GROUNDINGML_DATA_DIR")
    return Settings(
        model=model or environment.get("GROUNDINGML_MODEL") or "nano",
        device=environment.get("GROUNDINGML_DEVICE") or "auto",
        label_studio_url=environment.get("LABEL_STUDIO_URL") or None,
        label_studio_api_key=environment.get("LABEL_STUDIO_API_KEY") or None,
        allow_hosts=tuple(environment.get("GROUNDINGML_ALLOW_HOST", "").split()),
        data_dir=Path(data_dir) if data_dir else None,
        store_url=environment.get("GROUNDINGML_STORE") or None,
    )


def _store_url() -> str:
    from groundingml.store import default_data_dir, default_url

    settings = _settings(None)
    return settings.store_url or default_url(settings.data_dir or default_data_dir())


def _request_body() -> dict[str, Any] | None:
    """The body of the HTTP request that this happens in, under Flask; None outside of one."""
    import flask

    if not flask.has_request_context():
        return None
    body = flask.request.get_json(silent=True)
    return body if isinstance(body, dict) else None


def _answer_with(version: str | None) -> None:
    """Put our version in place of label-studio-ml's into the answer to the current request.

    Label Studio asks again for tasks without a prediction of the version that /setup named, and shows only
    predictions of that version.
    """
    import flask

    if not flask.has_request_context():
        return

    def replace(response: Any) -> Any:
        answer = response.get_json(silent=True)
        if isinstance(answer, dict) and "model_version" in answer:
            response.set_data(json.dumps({**answer, "model_version": version}))
        return response

    flask.after_this_request(replace)


def _project_of(tasks: Sequence[Mapping[str, Any]]) -> str | None:
    return _text(tasks[0].get("project")) if tasks else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the application answered with status {answer.status_code}"
