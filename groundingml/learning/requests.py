"""Asking for a training run; whoever watches the store starts its process."""

from __future__ import annotations

import dataclasses
import datetime

from sqlalchemy import func, select

from groundingml.learning.project_run import RunOptions
from groundingml.store import Store, utc_now
from groundingml.store.runs import enqueue_run, newest_runs, unfinished_runs
from groundingml.store.tables import Correction, Run

DEFAULT_RECIPE = "lora"
QUIET_S = 30.0
"""Corrections come one after the other: a run of its own accord begins when none has come for so long."""


def request_run(
    store: Store, project: str, trigger: str, options: RunOptions, recipe: str = "auto"
) -> tuple[Run, bool]:
    """A run for the project, and whether it is new: one that waits or runs already is given back as it is.

    trigger: who asked, for people: "START_TRAINING", "command", "corrections".
    """
    device = device_name(options.device)
    with store.begin() as session:
        before = {run.id for run in unfinished_runs(session, project)}
        run = enqueue_run(session, project, trigger, dataclasses.asdict(options), recipe)
        if run.id not in before:
            run.device = device
        return run, run.id not in before


def device_name(device: str) -> str:
    """The device that a run occupies, so that "auto", "cuda" and "cuda:0" exclude each other.

    Raises:
        ValueError: there is no such device here.
    """
    from groundingml.inference.devices import resolve_device

    place = resolve_device(device)
    return "cpu" if place.type == "cpu" else f"{place.type}:{place.index or 0}"


def due_projects(store: Store, every: int, now: datetime.datetime | None = None) -> list[str]:
    """Projects with ``every`` corrections or more since their last run was asked for, and a quiet moment
    since."""
    now = now or utc_now()
    due = []
    with store.read() as session:
        newest = dict(
            session.execute(
                select(Correction.project, func.max(Correction.made_at)).group_by(Correction.project)
            ).all()
        )
        for project, last in newest.items():
            if (now - last).total_seconds() < QUIET_S or unfinished_runs(session, project):
                continue
            runs = newest_runs(session, project, 1)
            query = select(func.count()).where(Correction.project == project, Correction.kind != "kept")
            if runs:
                query = query.where(Correction.made_at > runs[0].created_at)
            if (session.scalar(query) or 0) >= every:
                due.append(project)
    return due
