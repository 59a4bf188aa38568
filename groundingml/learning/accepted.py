"""The corrected tasks of a project: what training, measuring and exports start from."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from groundingml.learning.regions import AcceptedRegion, accepted_regions
from groundingml.store.tables import Annotation, Task


@dataclass(frozen=True)
class AcceptedTask:
    """A task with its newest accepted annotation; without regions it says that nothing is there.

    images: {name of the `Image` tag: URL as in the task's data}. width and height: of its image in pixels,
    None where nobody said. split: "train" or "holdout" once it has one.
    """

    project: str
    task: str
    annotation_id: str
    images: Mapping[str, str]
    width: int | None
    height: int | None
    split: str | None
    completed_by: str | None
    lead_time: float | None
    updated_at: datetime.datetime
    regions: tuple[AcceptedRegion, ...]


def accepted_tasks(session: Session, project: str) -> list[AcceptedTask]:
    """The corrected tasks of a project, by task number. Skipped and deleted annotations do not count."""
    rows = session.execute(
        select(Annotation, Task)
        .outerjoin(Task, (Task.project == Annotation.project) & (Task.task == Annotation.task))
        .where(Annotation.project == project, Annotation.state == "accepted")
        .order_by(Annotation.updated_at, Annotation.annotation_id)
    )
    newest = {annotation.task: (annotation, task) for annotation, task in rows}
    found = [_accepted(annotation, task) for annotation, task in newest.values()]
    return sorted(found, key=lambda one: (len(one.task), one.task))


def _accepted(annotation: Annotation, task: Task | None) -> AcceptedTask:
    return AcceptedTask(
        annotation.project,
        annotation.task,
        annotation.annotation_id,
        task.images if task is not None else {},
        task.original_width if task is not None else None,
        task.original_height if task is not None else None,
        task.split if task is not None else None,
        annotation.completed_by,
        annotation.lead_time,
        annotation.updated_at,
        tuple(accepted_regions(annotation.result)),
    )
