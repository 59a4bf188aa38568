"""Training runs over HTTP: asked for, watched, cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from groundingml.labelstudio.request_bodies import BadRequest
from groundingml.labelstudio.services import Services
from groundingml.learning.versions import process_lives
from groundingml.store.runs import cancel_run, newest_runs, run_as_json
from groundingml.store.tables import Run


def runs_router(services: Services) -> APIRouter:
    """GET /runs (?project=), GET /runs/{id}, POST /runs/{id}/cancel, POST /projects/{project}/train."""
    router = APIRouter()

    def listed(project: str | None) -> list[dict[str, Any]]:
        with services.store.read() as session:
            return [run_as_json(run) for run in newest_runs(session, project)]

    def one(run_id: int) -> dict[str, Any]:
        with services.store.read() as session:
            return _found(session.get(Run, run_id), run_id)

    def cancelled(run_id: int) -> dict[str, Any]:
        with services.store.begin() as session:
            return _found(cancel_run(session, run_id, process_lives), run_id)

    @router.get("/runs")
    async def runs(project: str | None = None) -> dict[str, Any]:
        return {"runs": await asyncio.to_thread(listed, project)}

    @router.get("/runs/{run_id}")
    async def run(run_id: int) -> dict[str, Any]:
        return await asyncio.to_thread(one, run_id)

    @router.post("/runs/{run_id}/cancel")
    async def cancel(run_id: int) -> dict[str, Any]:
        return await asyncio.to_thread(cancelled, run_id)

    @router.post("/projects/{project}/train")
    async def train(project: str) -> dict[str, Any]:
        run, is_new = await asyncio.to_thread(services.learning.request, project, "http")
        return {**run_as_json(run), "is_new": is_new}

    return router


def _found(run: Run | None, run_id: int) -> dict[str, Any]:
    if run is None:
        raise BadRequest(f"There is no run {run_id}.", status=404)
    return run_as_json(run)
