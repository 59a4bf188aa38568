"""The backend as an ASGI application: its routers, what stands before them, and how errors are answered.

Neither waits for the model nor for a running prediction: the event loop only parses and dispatches, images
are fetched in threads, and the detectors run in threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from groundingml.inference import ObjectDetector
from groundingml.labelstudio.auth import Guard
from groundingml.labelstudio.inference_queue import QueueFull
from groundingml.labelstudio.jobs_api import jobs_router
from groundingml.labelstudio.label_config import LabelConfigError
from groundingml.labelstudio.labelling_jobs import LabellingJobs
from groundingml.labelstudio.model_pool import ModelNotReady
from groundingml.labelstudio.predict_api import predict_router
from groundingml.labelstudio.prompts_api import prompts_router
from groundingml.labelstudio.request_bodies import BadRequest
from groundingml.labelstudio.request_ids import RequestIds
from groundingml.labelstudio.runs_api import runs_router
from groundingml.labelstudio.services import build_services
from groundingml.labelstudio.settings import Settings
from groundingml.labelstudio.status_page import status_router
from groundingml.labelstudio.webhooks import webhook_router

logger = logging.getLogger(__name__)

ROUTERS = (predict_router, prompts_router, jobs_router, runs_router, status_router)
"""Functions from the services to the routes of one kind."""
RETRY_AFTER_S = 5


def build_app(settings: Settings, detector: ObjectDetector | None = None) -> FastAPI:
    """See :func:`groundingml.labelstudio.create_app`."""
    services = build_services(settings, detector)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        package_log = logging.getLogger("groundingml")
        package_log.addHandler(services.troubles)
        services.pool.start()
        services.capture.start()
        services.learning.start()
        jobs = LabellingJobs(services)
        services.wake_jobs = jobs.wake
        jobs.start()
        yield
        services.stopping.set()
        await jobs.close()
        await asyncio.to_thread(services.learning.close)
        await asyncio.to_thread(services.predictor.close)
        await asyncio.to_thread(services.capture.close)
        package_log.removeHandler(services.troubles)
        services.store.close()

    app = FastAPI(title="groundingml", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.services = services
    for router in ROUTERS:
        app.include_router(router(services))
    app.include_router(webhook_router(services.capture.writer, settings.max_body_bytes))

    # The one added last is asked first.
    app.add_middleware(
        Guard,
        user=settings.basic_auth_user,
        password=settings.basic_auth_password,
        webhook_secret=settings.webhook_secret,
    )
    app.add_middleware(RequestIds, metrics=services.metrics)
    app.add_exception_handler(BadRequest, _answer_bad_request)
    app.add_exception_handler(LabelConfigError, _answer_label_config_error)
    app.add_exception_handler(ModelNotReady, _answer_not_ready)
    app.add_exception_handler(QueueFull, _answer_queue_full)
    app.add_exception_handler(Exception, _answer_unexpected)
    return app


async def _answer_bad_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BadRequest)
    return JSONResponse({"error": str(error)}, status_code=error.status)


async def _answer_label_config_error(_: Request, error: Exception) -> JSONResponse:
    logger.warning("Label config refused: %s", error)
    return JSONResponse({"error": str(error)}, status_code=422)


async def _answer_not_ready(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=503, headers={"Retry-After": str(RETRY_AFTER_S)})


async def _answer_queue_full(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, QueueFull)
    logger.warning("A request was refused: %s", error)
    headers = {"Retry-After": str(error.retry_after_s)}
    return JSONResponse({"error": str(error)}, status_code=503, headers=headers)


async def _answer_unexpected(_: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again after this answer, so the server logs it.
    return JSONResponse({"error": "Something went wrong; the server's log says what."}, status_code=500)
