"""Labelling jobs over HTTP: ask for one, watch it, cancel it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from groundingml.labelstudio.request_bodies import BadRequest, read_object
from groundingml.labelstudio.services import Services
from groundingml.labelstudio.task_filters import FilterError, parse_filter
from groundingml.learning.versions import process_lives
from groundingml.store.jobs import cancel_job, enqueue_job, job_as_json, newest_jobs
from groundingml.store.runs import Owner
from groundingml.store.tables import Job

MAX_BODY_BYTES = 100_000
MOST_BATCH = 500


def jobs_router(services: Services) -> APIRouter:
    """POST /jobs {"project": 7, "only_missing": false, "filter": ["total_annotations = 0"], "batch": 50};
    GET /jobs (?project=7); GET /jobs/{id}; POST /jobs/{id}/cancel."""
    router = APIRouter()

    @router.post("/jobs")
    async def ask(request: Request) -> JSONResponse:
        project, options = _read(await read_object(request, MAX_BODY_BYTES))
        settings = services.settings
        if not settings.label_studio_url or not settings.label_studio_api_key:
            raise BadRequest(
                "This server cannot store predictions: start it with LABEL_STUDIO_URL and "
                "LABEL_STUDIO_API_KEY.",
                409,
            )
        job = await asyncio.to_thread(enqueue, project, options)
        services.wake_jobs()
        return JSONResponse(job, status_code=202, headers={"Location": f"/jobs/{job['id']}"})

    def enqueue(project: str, options: dict[str, Any]) -> dict[str, Any]:
        with services.store.begin() as session:
            return job_as_json(enqueue_job(session, project, options))

    @router.get("/jobs")
    def jobs(project: str | None = None) -> dict[str, Any]:
        with services.store.read() as session:
            return {"jobs": [job_as_json(job) for job in newest_jobs(session, project)]}

    @router.get("/jobs/{job_id}")
    def job(job_id: int) -> dict[str, Any]:
        with services.store.read() as session:
            return job_as_json(_found(session.get(Job, job_id), job_id))

    @router.post("/jobs/{job_id}/cancel")
    def cancel(job_id: int) -> dict[str, Any]:
        with services.store.begin() as session:
            cancelled = cancel_job(session, job_id, Owner.this_process().host, process_lives)
            return job_as_json(_found(cancelled, job_id))

    return router


def _found(job: Job | None, job_id: int) -> Job:
    if job is None:
        raise BadRequest(f"There is no job {job_id}.", 404)
    return job


def _read(body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    unknown = set(body) - {"project", "only_missing", "filter", "batch"}
    if unknown:
        raise BadRequest(f'A job has no "{min(unknown)}"; it has project, only_missing, filter and batch.')
    project, batch = body.get("project"), body.get("batch", 50)
    only_missing, filters = body.get("only_missing", False), body.get("filter", [])
    if isinstance(project, str) and project.isdecimal():
        project = int(project)
    if not isinstance(project, int) or isinstance(project, bool) or project < 1:
        raise BadRequest('"project" must be the number of a Label Studio project.')
    if not isinstance(only_missing, bool):
        raise BadRequest('"only_missing" must be true or false.')
    if not isinstance(batch, int) or isinstance(batch, bool) or not 1 <= batch <= MOST_BATCH:
        raise BadRequest(f'"batch" must be a number from 1 to {MOST_BATCH}.')
    if not isinstance(filters, list) or not all(isinstance(text, str) for text in filters):
        raise BadRequest('"filter" must be a list of texts such as "total_annotations = 0".')
    try:
        for text in filters:
            parse_filter(text)
    except FilterError as error:
        raise BadRequest(str(error)) from error
    return str(project), {"only_missing": only_missing, "filters": filters, "batch": batch}
