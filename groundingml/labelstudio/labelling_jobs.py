"""Labelling jobs inside the server: one at a time, behind what annotators ask, and resumed after a crash.

A job is what `groundingml label --project` does. What is done is what Label Studio holds, so a job that is
begun again by another process leaves neither a gap nor a second prediction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from groundingml.labelstudio.api_client import ApiError, LabelStudioApi
from groundingml.labelstudio.label_config import LabelConfigError
from groundingml.labelstudio.labelling_report import LabellingReport
from groundingml.labelstudio.model_pool import ModelNotReady
from groundingml.labelstudio.project_labelling import ProjectLabelling
from groundingml.labelstudio.project_work import project_now
from groundingml.labelstudio.services import Services
from groundingml.labelstudio.task_filters import FilterError, parse_filter
from groundingml.learning.versions import process_lives
from groundingml.store.jobs import claim_job, finish_job, renew_job
from groundingml.store.runs import Owner
from groundingml.store.tables import Job

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
"""How often to look for jobs that another process was asked for."""
RENEW_EVERY_S = 2.0


class LabellingJobs:
    """Does the jobs that wait in the store, one after the other."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._owner = Owner.this_process()
        self._task: asyncio.Task[None] | None = None
        self._stop = threading.Event()
        self._wake = asyncio.Event()

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """A job was just asked for."""
        self._wake.set()

    async def close(self) -> None:
        """Store what is predicted, give the running job back for the next process, end."""
        self._stop.set()
        self._wake.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                job = await asyncio.to_thread(self._claim)
                if job is not None:
                    await self._do(job)
                    continue
            except SQLAlchemyError as error:
                reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
                logger.error("Labelling jobs wait, since the database has trouble: %s", reason)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_EVERY_S)

    def _claim(self) -> Job | None:
        with self._services.store.begin() as session:
            return claim_job(session, self._owner, process_lives)

    async def _do(self, job: Job) -> None:
        logger.info("Labelling job %d: project %s begins", job.id, job.project)
        watch = _Watch(self._services, job, self._owner)
        renewing = asyncio.create_task(watch.renew_until_over(self._stop))
        report = None
        try:
            report = await self._label(job, watch)
            state, message = _outcome(report, watch, self._stop.is_set())
        except (ApiError, FilterError, LabelConfigError, ModelNotReady) as error:
            state, message = "failed", str(error)
        except Exception:
            logger.exception("Labelling job %d failed", job.id)
            state, message = "failed", "something went wrong; the server's log says what"
        finally:
            watch.over.set()
            await renewing
        await asyncio.to_thread(self._finish, job, watch, state, message, report)
        logger.info("Labelling job %d: %s, %s", job.id, state, message)

    async def _label(self, job: Job, watch: _Watch) -> LabellingReport:
        settings, options = self._services.settings, job.options
        if not settings.label_studio_url or not settings.label_studio_api_key:
            raise FilterError(
                "the server has no LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, so it cannot store predictions"
            )
        assert job.project is not None, "jobs are of projects"
        filters = [parse_filter(text) for text in options.get("filters", ())]
        api = LabelStudioApi(settings.label_studio_url, settings.label_studio_api_key, pause=watch.stop.wait)
        try:
            now = await asyncio.to_thread(project_now, api, int(job.project))
            state = await asyncio.to_thread(self._services.projects.state, job.project)
            model = await self._services.pool.ready(settings.load_wait_s, job.project)
            work = now.work(
                model,
                filters=filters,
                only_missing=bool(options.get("only_missing")),
                batch=int(options.get("batch", 50)),
                prompts=state.prompts,
            )
            self._services.served.add(work.model_version)
            labelling = ProjectLabelling(
                api,
                self._services.predictor,
                work,
                stop=watch.stop,
                on_start=watch.begin,
                on_task=watch.advance,
            )
            return await labelling.run()
        finally:
            api.close()

    def _finish(
        self, job: Job, watch: _Watch, state: str, message: str, report: LabellingReport | None
    ) -> None:
        as_json = None if report is None else report.to_dict()
        with self._services.store.begin() as session:
            renew_job(session, job.id, self._owner, job.attempts, watch.progress())
            finish_job(session, job.id, self._owner, job.attempts, state, message, as_json)


class _Watch:
    """Shows a job's progress in the store, and hears from there that it is to end."""

    def __init__(self, services: Services, job: Job, owner: Owner) -> None:
        self._services = services
        self._job = job
        self._owner = owner
        self._total = self._done = 0
        self._begun = time.monotonic()
        self.stop = threading.Event()
        """Ends the labelling after the tasks at hand."""
        self.over = asyncio.Event()
        self.cancelled = False

    def begin(self, total: int) -> None:
        self._total, self._begun = total, time.monotonic()

    def advance(self) -> None:
        self._done += 1

    async def renew_until_over(self, server_stops: threading.Event) -> None:
        while not self.over.is_set():
            if server_stops.is_set():
                self.stop.set()
            try:
                if await asyncio.to_thread(self._renew) != "go on":
                    self.cancelled = True
                    self.stop.set()
            except SQLAlchemyError:
                # The lease may run out; then another process goes on, and finds what this one has stored.
                logger.warning("Labelling job %d: its progress cannot be noted", self._job.id)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.over.wait(), RENEW_EVERY_S)

    def _renew(self) -> str:
        with self._services.store.begin() as session:
            return renew_job(session, self._job.id, self._owner, self._job.attempts, self.progress())

    def progress(self) -> dict[str, Any]:
        """How far it is, for people."""
        progress: dict[str, Any] = {"phase": "labelling", "done": self._done, "total": self._total}
        if 0 < self._done <= self._total:
            pace = (time.monotonic() - self._begun) / self._done
            progress["eta_s"] = round(pace * (self._total - self._done), 1)
        return progress


def _outcome(report: LabellingReport, watch: _Watch, server_stops: bool) -> tuple[str, str]:
    done = f"{report.labelled} of {report.total} tasks labelled by version {report.model_version}"
    if report.failed:
        done += f", {len(report.failed)} failed"
    if report.stopped is not None:
        return "failed", f"{done}; stopped: {report.stopped}"
    if watch.cancelled and report.left:
        return "cancelled", done
    if server_stops and report.left:
        return "queued", f"{done}; goes on when a server runs"
    return "done", done
