"""Labelling jobs: asked for, owned by one process at a time, watched, ended.

The owner renews a lease. When it stops doing so, or has died on this host, another process takes the job and
goes on with it; the job itself must be one that can be continued.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from groundingml.store.runs import UNFINISHED, Owner
from groundingml.store.tables import Job
from groundingml.store.times import utc_now

LEASE_S = 30.0
MOST_ATTEMPTS = 5
"""A job whose owners died so often is given up: it would kill the next one too."""


def enqueue_job(session: Session, project: str, options: dict[str, Any]) -> Job:
    """A job that waits for a process; the one that asks for the same, if it waits or runs already."""
    same = select(Job).where(Job.project == project, Job.state.in_(UNFINISHED)).with_for_update()
    for job in session.scalars(same):
        if job.options == options and not job.cancel_requested:
            return job
    job = Job(project=project, kind="label", options=options)
    session.add(job)
    session.flush()
    return job


def newest_jobs(session: Session, project: str | None = None, count: int = 20) -> list[Job]:
    """The last jobs, the newest first."""
    query = select(Job).order_by(Job.id.desc()).limit(count)
    if project is not None:
        query = query.where(Job.project == project)
    return list(session.scalars(query))


def claim_job(session: Session, owner: Owner, lives: Callable[[int], bool]) -> Job | None:
    """Make ``owner`` the one that does the oldest job that nobody does. ``lives`` tells it of a pid here."""
    query = select(Job).where(Job.state.in_(UNFINISHED)).order_by(Job.id).with_for_update(skip_locked=True)
    for job in session.scalars(query):
        if _is_owned(job, owner.host, lives):
            continue
        if job.cancel_requested:
            end_job(job, "cancelled", "cancelled")
        elif job.attempts >= MOST_ATTEMPTS:
            end_job(job, "failed", f"given up: {job.attempts} processes ended while they did it")
        else:
            job.state, job.owner = "running", _name(owner)
            job.lease_until = utc_now() + datetime.timedelta(seconds=LEASE_S)
            job.attempts += 1
            job.started_at = job.started_at or utc_now()
            return job
    return None


def renew_job(
    session: Session, job_id: int, owner: Owner, attempt: int, progress: dict[str, Any]
) -> Literal["go on", "cancel", "lost"]:
    """A sign of life, with the progress to show. "lost": another process has the job, so write nothing."""
    job = session.get(Job, job_id, with_for_update=True)
    if job is None or (job.state, job.owner, job.attempts) != ("running", _name(owner), attempt):
        return "lost"
    job.lease_until = utc_now() + datetime.timedelta(seconds=LEASE_S)
    job.progress = progress
    return "cancel" if job.cancel_requested else "go on"


def finish_job(
    session: Session, job_id: int, owner: Owner, attempt: int, state: str, message: str, report: Any
) -> None:
    """Note how the job ended; nothing if another process has it by now. State "queued" gives it back."""
    job = session.get(Job, job_id, with_for_update=True)
    if job is None or (job.state, job.owner, job.attempts) != ("running", _name(owner), attempt):
        return
    job.report = report
    if state == "queued":
        job.state, job.message = state, message
        job.owner, job.lease_until = None, None
        job.attempts -= 1  # it did not fail
    else:
        end_job(job, state, message)


def end_job(job: Job, state: str, message: str) -> None:
    """The job is over."""
    job.state, job.message, job.finished_at = state, message, utc_now()
    job.owner = job.lease_until = None


def cancel_job(session: Session, job_id: int, host: str, lives: Callable[[int], bool]) -> Job | None:
    """Ask for the end of a job; at once where no process does it. None: there is no such job."""
    job = session.get(Job, job_id, with_for_update=True)
    if job is None or job.state not in UNFINISHED:
        return job
    job.cancel_requested = True
    if not _is_owned(job, host, lives):
        end_job(job, "cancelled", "cancelled")
    return job


def job_as_json(job: Job) -> dict[str, Any]:
    """A job for scripts."""
    times = {name: getattr(job, name) for name in ("created_at", "started_at", "finished_at")}
    return {
        "id": job.id,
        "project": job.project,
        "kind": job.kind,
        "options": job.options,
        "state": job.state,
        "progress": job.progress,
        "report": job.report,
        "message": job.message,
        "attempts": job.attempts,
        "cancel_requested": job.cancel_requested,
        **{
            name: None if time is None else time.isoformat(timespec="seconds") for name, time in times.items()
        },
    }


def _is_owned(job: Job, host: str, lives: Callable[[int], bool]) -> bool:
    if job.owner is None or job.lease_until is None or job.lease_until <= utc_now():
        return False
    owner_host, _, pid = job.owner.rpartition(" ")
    return owner_host != host or lives(int(pid))


def _name(owner: Owner) -> str:
    return f"{owner.host} {owner.pid}"
