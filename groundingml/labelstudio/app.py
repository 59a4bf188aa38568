"""The backend's HTTP face: what Label Studio 1.23 asks, and answers that it takes.

/health and /setup wait neither for the model nor for a running prediction: the event loop only parses and
dispatches, images are fetched in threads, and the detector runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from groundingml.inference import ObjectDetector
from groundingml.labelstudio.auth import BasicAuth
from groundingml.labelstudio.label_config import LabelConfig, LabelConfigError, parse_label_config
from groundingml.labelstudio.predictor import Predictor, TaskError
from groundingml.labelstudio.settings import Settings
from groundingml.labelstudio.versions import ConnectionParams, ServedVersions, model_version
from groundingml.labelstudio.worker import ModelNotReady, ModelWorker

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5


class BadRequest(ValueError):
    """A request is not what Label Studio sends. The message says what is wrong."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def build_app(settings: Settings, detector: ObjectDetector | None = None) -> FastAPI:
    """See :func:`groundingml.labelstudio.create_app`."""
    worker = ModelWorker(settings.model, settings.device, detector, settings.allow_cloud)
    predictor = Predictor(settings, worker)
    served = ServedVersions()
    connection_params = ConnectionParams()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        predictor.close()
        await asyncio.to_thread(worker.close)

    app = FastAPI(title="groundingml", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    if settings.basic_auth_user is not None and settings.basic_auth_password is not None:
        app.add_middleware(BasicAuth, user=settings.basic_auth_user, password=settings.basic_auth_password)
    app.add_exception_handler(BadRequest, _answer_bad_request)
    app.add_exception_handler(LabelConfigError, _answer_label_config_error)
    app.add_exception_handler(ModelNotReady, _answer_not_ready)
    app.add_exception_handler(Exception, _answer_unexpected)

    def current_version(config: LabelConfig) -> str | None:
        """None until the checkpoint is hashed: a made-up version would make Label Studio keep predictions
        under it."""
        if worker.checkpoint_digest is None:
            return None
        version = model_version(worker.checkpoint_digest, config)
        served.add(version)
        return version

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "GroundingDino", "model": worker.state}

    @app.post("/setup")
    async def setup(request: Request) -> dict[str, str | None]:
        body = await _read_object(request, settings.max_body_bytes)
        config = _read_config(body.get("schema"), body.get("extra_params"))
        connection_params.set(body.get("project"), body.get("extra_params"))
        if worker.state == "failed":
            await worker.ready(0)  # raises, saying so
        version = current_version(config)
        names = [label.name for control in config.controls for label in control.labels]
        logger.info(
            "Set up for project %.40r with %d labels: version %s", body.get("project"), len(names), version
        )
        if config.unsupported:
            logger.info("Left to annotators, since only rectangles are predicted: %s", _listed(config))
        return {"model_version": version}

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        started = time.monotonic()
        deadline = started + settings.predict_budget_s
        body = await _read_object(request, settings.max_body_bytes)
        config = _read_config(body.get("label_config"), connection_params.of(body.get("project")))
        tasks = body.get("tasks")
        if not isinstance(tasks, list):
            raise BadRequest('"tasks" must be a list.')
        await worker.ready(min(settings.load_wait_s, settings.predict_budget_s))
        version = current_version(config)
        assert version is not None, "a loaded detector has a digest"
        params = body.get("params")
        context = params.get("context") if isinstance(params, dict) else None
        if _is_from_editor(tasks, context):
            done_there = context.get("result") if isinstance(context, dict) else None
            try:
                items = [
                    await predictor.predict_for_editor(task, config, done_there, version, deadline)
                    for task in tasks
                ]
            except TaskError as error:
                return JSONResponse({"error": str(error)}, status_code=502)
        else:
            async with _watching_disconnect(request) as gone:
                items = await predictor.predict_tasks(tasks, config, version, deadline, gone.is_set)
        done = sum("result" in item for item in items)
        logger.info("Predicted %d of %d tasks in %.1f s", done, len(items), time.monotonic() - started)
        return JSONResponse({"results": items, "model_version": version})

    @app.post("/webhook")
    async def webhook(request: Request) -> dict[str, str]:
        # The body is neither parsed nor logged: it carries the project's token.
        await _read_body(request, settings.max_body_bytes)
        return {"status": "ok"}

    @app.get("/versions")
    async def versions() -> dict[str, list[str]]:
        return {"versions": served.newest_first()}

    return app


def _is_from_editor(tasks: list[Any], context: Any) -> bool:
    """Whether an annotator waits with the editor open, as opposed to a batch for the project's labels.

    The editor sends a context; when that is null, as after a submit, it is told by the drafts that only its
    tasks have.
    """
    if context is not None:
        return True
    return bool(tasks) and all(isinstance(task, dict) and "drafts" in task for task in tasks)


def _listed(config: LabelConfig) -> str:
    names = [name[:80] for name in config.unsupported]
    return ", ".join(names[:10]) + (" and others" if len(names) > 10 else "")


def _read_config(xml: Any, extra_params: Any) -> LabelConfig:
    if not isinstance(xml, str) or not xml.strip():
        raise BadRequest("The request has no label config.")
    return parse_label_config(xml, extra_params)


async def _read_object(request: Request, limit: int) -> dict[str, Any]:
    content = await _read_body(request, limit)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRequest("The body is not JSON.") from error
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    return body


async def _read_body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BadRequest(f"The body is larger than {limit:,} bytes.", status=413)
    return bytes(body)


@contextlib.asynccontextmanager
async def _watching_disconnect(request: Request) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the client hangs up. Only for requests whose body has been read."""
    gone = asyncio.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watcher = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        watcher.cancel()


async def _answer_bad_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BadRequest)
    return JSONResponse({"error": str(error)}, status_code=error.status)


async def _answer_label_config_error(_: Request, error: Exception) -> JSONResponse:
    logger.warning("Label config refused: %s", error)
    return JSONResponse({"error": str(error)}, status_code=422)


async def _answer_not_ready(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=503, headers={"Retry-After": str(RETRY_AFTER_S)})


async def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again after this answer, so the server logs it with its traceback.
    return JSONResponse({"error": "Something went wrong; the server's log says what."}, status_code=500)
