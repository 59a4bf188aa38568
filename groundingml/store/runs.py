"""Training runs: asked for, claimed by one process at a time for each device, watched, ended.

A process owns a run by its host, pid and attempt; each renewal checks that it still does. A run whose owner
has died, or not renewed it for STALE_S seconds, may be taken over and goes on from its last checkpoint.
"""

from __future__ import annotations

import datetime
import os
import socket
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from groundingml.store.tables import Run
from groundingml.store.times import utc_now

STALE_S = 60.0
"""Without a sign of life for so long, a run's process counts as dead, wherever it is."""
MOST_ATTEMPTS = 5
"""A run that was begun so often without an end is given up: it would fail for ever."""
UNFINISHED = ("queued", "running")


@dataclass(frozen=True)
class Owner:
    """A process that runs something, as the store knows it."""

    host: str
    pid: int

    @classmethod
    def this_process(cls) -> Owner:
        return cls(socket.gethostname(), os.getpid())


def enqueue_run(
    session: Session, project: str | None, trigger: str, options: dict[str, Any], recipe: str
) -> Run:
    """A run that waits for a process; the project's own one, if one waits or runs already.

    trigger: who asked for it, for people. options: empty for the server's own, which it fills in.
    """
    _lock(session, f"requests of {project}")
    for run in unfinished_runs(session, project) if project is not None else ():
        if not run.cancel_requested:
            return run
    run = Run(project=project, recipe=recipe, options=options, trigger=trigger, device=options.get("device"))
    session.add(run)
    session.flush()
    run.folder = f"runs/{run.id}"
    return run


def unfinished_runs(session: Session, project: str | None = None) -> list[Run]:
    """Runs that wait or run, the oldest first."""
    query = select(Run).where(Run.state.in_(UNFINISHED)).order_by(Run.id)
    if project is not None:
        query = query.where(Run.project == project)
    return list(session.scalars(query))


def newest_runs(session: Session, project: str | None = None, count: int = 20) -> list[Run]:
    """The last runs, the newest first."""
    query = select(Run).order_by(Run.id.desc()).limit(count)
    if project is not None:
        query = query.where(Run.project == project)
    return list(session.scalars(query))


def is_owned(run: Run, lives: Callable[[int], bool], now: datetime.datetime | None = None) -> bool:
    """Whether a live process has the run. ``lives`` says it of a pid on this host."""
    if run.host is None or run.pid is None or run.heartbeat_at is None:
        return False
    if ((now or utc_now()) - run.heartbeat_at).total_seconds() > STALE_S:
        return False
    return run.host != socket.gethostname() or lives(run.pid)


@dataclass(frozen=True)
class Claim:
    """What came of trying to own a run: "claimed", with its attempt; "waiting" for another run on its device;
    "taken" by another process; or "ended"."""

    outcome: Literal["claimed", "waiting", "taken", "ended"]
    attempt: int = 0
    waits_for: int | None = None


def claim_run(session: Session, run_id: int, owner: Owner, lives: Callable[[int], bool]) -> Claim:
    """Make ``owner`` the one that runs ``run_id``, unless somebody else does, or its device is busy.

    While it waits it owns the run too, so that nobody else starts a process for it. Call it in
    ``store.begin()``.
    """
    _lock(session, f"devices of {owner.host}")
    run = session.get(Run, run_id, with_for_update=True)
    if run is None or run.state not in UNFINISHED:
        return Claim("ended")
    mine = (run.host, run.pid) == (owner.host, owner.pid)
    if not mine and is_owned(run, lives):
        return Claim("taken")
    if run.cancel_requested:
        end_run(session, run, "cancelled", "cancelled before it began")
        return Claim("ended")
    if run.attempts >= MOST_ATTEMPTS:
        tried = f"given up after {run.attempts} attempts that ended without a word; its log says more"
        end_run(session, run, "failed", tried)
        return Claim("ended")
    run.host, run.pid, run.heartbeat_at = owner.host, owner.pid, utc_now()
    query = select(Run).where(Run.id != run_id, Run.state == "running", Run.device == run.device)
    busy = [one for one in session.scalars(query) if one.host == owner.host and is_owned(one, lives)]
    if busy:
        run.state, run.message = "queued", f"waits for run {busy[0].id}, which trains on {run.device}"
        return Claim("waiting", waits_for=busy[0].id)
    run.state, run.message = "running", None
    run.attempts += 1
    run.started_at = run.started_at or utc_now()
    return Claim("claimed", attempt=run.attempts)


def renew_run(
    session: Session, run_id: int, owner: Owner, attempt: int, progress: dict[str, Any] | None
) -> Literal["go on", "cancel", "lost"]:
    """A sign of life, with the progress to show. "lost": another process has taken over, so stop and write
    nothing."""
    run = session.get(Run, run_id, with_for_update=True)
    if run is None or run.state != "running":
        return "lost"
    if (run.host, run.pid, run.attempts) != (owner.host, owner.pid, attempt):
        return "lost"
    run.heartbeat_at = utc_now()
    if progress is not None:
        run.progress = progress
    return "cancel" if run.cancel_requested else "go on"


def end_run(session: Session, run: Run, state: str, message: str) -> None:
    """The run is over."""
    run.state, run.message, run.finished_at = state, message, utc_now()
    run.progress = None
    run.host = run.pid = run.heartbeat_at = None


def release_run(session: Session, run: Run, message: str) -> None:
    """The process stops, but the run is not over: who claims it next goes on. The attempt does not count."""
    run.state, run.message = "queued", message
    run.attempts = max(run.attempts - 1, 0)
    run.host = run.pid = run.heartbeat_at = None


def cancel_run(session: Session, run_id: int, lives: Callable[[int], bool]) -> Run | None:
    """Ask for the end of a run; at once where no process has it. None: there is no such run."""
    run = session.get(Run, run_id, with_for_update=True)
    if run is None or run.state not in UNFINISHED:
        return run
    run.cancel_requested = True
    if not is_owned(run, lives):
        end_run(session, run, "cancelled", "cancelled")
    return run


def runs_without_owner(session: Session, lives: Callable[[int], bool]) -> Sequence[Run]:
    """Unfinished runs that no live process has."""
    return [run for run in unfinished_runs(session) if not is_owned(run, lives)]


def run_as_json(run: Run) -> dict[str, Any]:
    """A run for scripts."""
    times = {name: getattr(run, name) for name in ("created_at", "started_at", "finished_at")}
    return {
        "id": run.id,
        "project": run.project,
        "state": run.state,
        "trigger": run.trigger,
        "recipe": run.recipe,
        "device": run.device,
        "attempts": run.attempts,
        "progress": run.progress,
        "message": run.message,
        "cancel_requested": run.cancel_requested,
        **{
            name: None if time is None else time.isoformat(timespec="seconds") for name, time in times.items()
        },
    }


def _lock(session: Session, what: str) -> None:
    """Until the transaction ends, no other one looks at the same: two must not both see a device free, or no
    run waiting. SQLite's write transactions exclude each other anyway."""
    if session.get_bind().dialect.name == "postgresql":
        number = zlib.crc32(what.encode())
        session.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
