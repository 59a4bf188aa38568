"""The page at / for the people who run the server, and /metrics for Prometheus.

One answer without scripts, made on the server; the only thing it asks the browser to load is nothing.
"""

from __future__ import annotations

import asyncio
import datetime
import secrets
import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import select

import groundingml
from groundingml.labelstudio.acceptance_plot import DayOfCorrections, acceptance_plot
from groundingml.labelstudio.config_options import LabelConfigError
from groundingml.labelstudio.label_config import parse_label_config
from groundingml.labelstudio.services import Services
from groundingml.learning.acceptance import acceptance_over_time
from groundingml.store import utc_now
from groundingml.store.tables import Job, Project, Run

MOST_ROWS = 10
MOST_DAYS = 180
REFRESH_S = 20


@dataclass(frozen=True)
class ProjectRow:
    """One project as the page shows it."""

    project: str
    labels: str
    digest: str | None
    prompts: dict[str, str]


@dataclass(frozen=True)
class WorkRow:
    """A training run or labelling job as the page shows it."""

    what: str
    project: str | None
    state: str
    progress: str
    message: str
    created_at: datetime.datetime


def status_router(services: Services) -> APIRouter:
    """/ and /metrics."""
    environment = Environment(
        loader=PackageLoader("groundingml.labelstudio", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["ago"] = _ago
    template = environment.get_template("status_page.html")
    started = time.monotonic()
    router = APIRouter()

    def page(nonce: str) -> str:
        queue = services.predictor.queue
        return template.render(
            nonce=nonce,
            refresh_s=REFRESH_S,
            version=groundingml.__version__,
            uptime=_duration(time.monotonic() - started),
            models=services.pool.models(),
            base_state=services.pool.state(),
            devices=", ".join(services.pool.places),
            queue=queue,
            projects=_projects(services),
            work=_work(services),
            plot=acceptance_plot(_days(services)),
            troubles=services.troubles.newest_first(),
        )

    @router.get("/", response_class=HTMLResponse)
    async def status() -> HTMLResponse:
        nonce = secrets.token_urlsafe(12)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        headers = {
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(await asyncio.to_thread(page, nonce), headers=headers)

    @router.get("/metrics")
    async def metrics() -> Response:
        text = await asyncio.to_thread(services.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _projects(services: Services) -> list[ProjectRow]:
    prompts: dict[str, dict[str, str]] = {}
    for prompt in services.prompts.all():
        prompts.setdefault(prompt.project, {})[prompt.control] = prompt.text
    labels = {row.project: _labels(row) for row in services.projects.all()}
    return [
        ProjectRow(
            project,
            labels.get(project, ""),
            services.pool.checkpoint_digest(project),
            prompts.get(project, {}),
        )
        for project in dict.fromkeys([*labels, *prompts])
    ]


def _labels(row: Project) -> str:
    try:
        config = parse_label_config(row.label_config or "", row.extra_params)
    except LabelConfigError:
        return "(its label config has no boxes)"
    names = dict.fromkeys(label.name for control in config.controls for label in control.labels)
    shown = list(names)[:8]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _work(services: Services) -> list[WorkRow]:
    """The latest training runs and labelling jobs."""
    with services.store.read() as session:
        runs = session.scalars(select(Run).order_by(Run.id.desc()).limit(MOST_ROWS)).all()
        jobs = session.scalars(select(Job).order_by(Job.id.desc()).limit(MOST_ROWS)).all()
        rows = [_work_row(f"training run {run.id} ({run.recipe})", run) for run in runs]
        rows += [_work_row(f"{job.kind} job {job.id}", job) for job in jobs]
    return sorted(rows, key=lambda row: row.created_at, reverse=True)[:MOST_ROWS]


def _work_row(what: str, row: Run | Job) -> WorkRow:
    return WorkRow(what, row.project, row.state, _progress(row.progress), row.message or "", row.created_at)


def _progress(progress: Any) -> str:
    if not isinstance(progress, dict) or not progress.get("total"):
        return ""
    phase = progress.get("phase")
    return f"{f'{phase}: ' if phase else ''}{progress.get('done', 0)} of {progress['total']}"


def _days(services: Services) -> list[DayOfCorrections]:
    since = utc_now() - datetime.timedelta(days=MOST_DAYS)
    counts: dict[tuple[datetime.date, str], list[int]] = {}
    with services.store.read() as session:
        days = acceptance_over_time(session, since=since)
    for day in days:
        checkpoint = (day.model_version or "").partition("-")[0]  # prompts change more often than models
        count = counts.setdefault((day.day, checkpoint), [0, 0])
        count[0] += day.predicted
        count[1] += day.kept
    return [
        DayOfCorrections(day, predicted, kept, version)
        for (day, version), (predicted, kept) in counts.items()
        if predicted
    ]


def _ago(time: datetime.datetime) -> str:
    return f"{_duration(max((utc_now() - time).total_seconds(), 0))} ago"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
