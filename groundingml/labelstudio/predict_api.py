"""The requests that Label Studio 1.23 makes of an ML backend, and answers that it takes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from groundingml.labelstudio.known_projects import ProjectState
from groundingml.labelstudio.label_config import LabelConfig
from groundingml.labelstudio.predictions import failed_prediction
from groundingml.labelstudio.predictor import Asked, TaskError, TooSlow
from groundingml.labelstudio.request_bodies import (
    BadRequest,
    editor_context,
    read_config,
    read_object,
    read_project,
    watching_disconnect,
)
from groundingml.labelstudio.services import Services
from groundingml.labelstudio.versions import model_version, prompts_of

logger = logging.getLogger(__name__)


def predict_router(services: Services) -> APIRouter:
    """/health, /setup, /predict and /versions."""
    settings, pool, predictor = services.settings, services.pool, services.predictor
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "GroundingDino", "model": pool.state()}

    @router.post("/setup")
    async def setup(request: Request) -> dict[str, str | None]:
        body = await read_object(request, settings.max_body_bytes)
        project = read_project(body)
        config = read_config(body.get("schema"), body.get("extra_params"))
        if project:
            await asyncio.to_thread(services.projects.set, project, body["schema"], body.get("extra_params"))
        state = await asyncio.to_thread(services.projects.state, project)
        if pool.state(project) == "failed":
            await pool.ready(0, project)  # raises, saying so
        # None until the checkpoint is hashed: a made-up version would make Label Studio keep predictions
        # under it.
        digest = pool.checkpoint_digest(project)
        version = None if digest is None else _version(services, digest, config, state)
        labels = sum(len(control.labels) for control in config.controls)
        logger.info("Set up for project %s with %d labels: version %s", project, labels, version)
        if config.unsupported:
            logger.info("Left to annotators, since only rectangles are predicted: %s", _listed(config))
        return {"model_version": version}

    @router.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        started = time.monotonic()
        body = await read_object(request, settings.max_body_bytes)
        project = read_project(body)
        state = await asyncio.to_thread(services.projects.state, project)
        config = read_config(body.get("label_config"), state.extra_params)
        tasks = body.get("tasks")
        if not isinstance(tasks, list):
            raise BadRequest('"tasks" must be a list.')
        model = await pool.ready(min(settings.load_wait_s, settings.predict_budget_s), project)
        version = _version(services, model.digest, config, state)
        deadline = started + settings.predict_budget_s
        asked = Asked(project, config, model, version, deadline, prompts_of(config, state.prompts))
        is_editor, done_there = editor_context(tasks, body.get("params"))
        with predictor.queue.admit(is_urgent=is_editor):
            if is_editor:
                try:
                    items = [await predictor.predict_for_editor(task, asked, done_there) for task in tasks]
                except TaskError as error:
                    return JSONResponse({"error": str(error)}, status_code=502)
            else:
                items = await _predict_batch(request, services, tasks, asked, started)
        done = sum("result" in item for item in items)
        logger.info("Predicted %d of %d tasks in %.1f s", done, len(items), time.monotonic() - started)
        return JSONResponse({"results": items, "model_version": version})

    @router.get("/versions")
    async def versions() -> dict[str, list[str]]:
        return {"versions": services.served.newest_first()}

    return router


async def _predict_batch(
    request: Request, services: Services, tasks: list[Any], asked: Asked, started: float
) -> list[dict[str, Any]]:
    settings, predictor = services.settings, services.predictor
    # Label Studio waits 100 s for one request, whatever it holds. Answered with a single item for several
    # tasks, it asks again for each of them alone, and waits as long for each.
    budget = settings.predict_budget_s - (time.monotonic() - started)
    pace = predictor.queue.seconds_per_image
    expected = None if pace is None or len(tasks) < 2 else pace * len(tasks) * len(asked.config.images)
    try:
        if expected is not None and budget < expected <= settings.one_by_one_limit_s:
            raise TooSlow
        async with watching_disconnect(request) as gone:
            return await predictor.predict_tasks(
                tasks,
                asked,
                is_abandoned=lambda: gone.is_set() or services.stopping.is_set(),
                too_slow_s=(budget, settings.one_by_one_limit_s) if expected is None else None,
            )
    except TooSlow:
        logger.info("%d tasks take longer than one request may: asked for one by one", len(tasks))
        return [failed_prediction("these tasks have to be asked for one by one", asked.version)]


def _version(services: Services, digest: str, config: LabelConfig, state: ProjectState) -> str:
    version = model_version(digest, config, state.prompts)
    services.served.add(version)
    return version


def _listed(config: LabelConfig) -> str:
    names = [name[:80] for name in config.unsupported]
    return ", ".join(names[:10]) + (" and others" if len(names) > 10 else "")
