"""What annotators submitted, as it is now. Events may come twice, late, or in the wrong order."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from groundingml.store.tables import Annotation, Correction, PredictedRegion, Prediction, Project, Task

State = Literal["accepted", "skipped"]


@dataclass(frozen=True)
class Submitted:
    """An annotation as Label Studio tells of it; the times are Label Studio's."""

    annotation_id: str
    project: str
    task: str
    state: State
    result: Sequence[dict[str, Any]]
    completed_by: str | None
    lead_time: float | None
    created_at: datetime.datetime
    updated_at: datetime.datetime

    @property
    def digest(self) -> str:
        """Changes when anything does that a correction says."""
        told = [self.project, self.task, self.state, self.result, self.completed_by, self.lead_time]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def put_annotation(session: Session, given: Submitted, now: datetime.datetime) -> Annotation | None:
    """Keep an annotation; its row, or None when that changes nothing: it is known, older, or deleted.

    Label Studio never uses an annotation's id again, so what is deleted stays deleted. Only one that was made
    after the one known here is another: of a Label Studio that began anew.
    """
    row = session.get(Annotation, given.annotation_id)
    if row is None:
        row = Annotation(annotation_id=given.annotation_id)
        session.add(row)
    elif given.created_at <= row.created_at:
        if row.state == "deleted" or row.project != given.project or given.updated_at < row.updated_at:
            return None
        row.seen_at = now
        if row.digest == given.digest:
            row.updated_at = given.updated_at
            return None
    row.project, row.task, row.state = given.project, given.task, given.state
    row.result = list(given.result)
    row.completed_by, row.lead_time = given.completed_by, given.lead_time
    row.digest, row.seen_at = given.digest, now
    row.created_at, row.updated_at = given.created_at, given.updated_at
    session.flush()
    return row


def put_task(
    session: Session, project: str, task: str, images: Mapping[str, str], now: datetime.datetime
) -> Task:
    """Keep what is known of a task: the URL of each of its images by name. Nothing known is forgotten."""
    row = session.get(Task, (project, task))
    if row is None:
        row = Task(project=project, task=task, images={})
        session.add(row)
    if images and row.images != dict(images):
        row.images = dict(images)
        row.updated_at = now
    session.flush()
    return row


def delete_annotations(session: Session, project: str, ids: Iterable[str], now: datetime.datetime) -> int:
    """Mark annotations of a project as deleted and drop their corrections; how many that changed.

    One that is not known is marked too: the event that made it may be late.
    """
    changed = 0
    for annotation_id in ids:
        row = session.get(Annotation, annotation_id)
        if row is None:
            row = Annotation(
                annotation_id=annotation_id, project=project, task="", state="accepted", created_at=now
            )
            session.add(row)
        if row.project != project or row.state == "deleted":
            continue
        row.state, row.result, row.digest = "deleted", [], ""
        row.updated_at = row.seen_at = now
        session.flush()
        session.execute(delete(Correction).where(Correction.annotation_id == annotation_id))
        changed += 1
    return changed


def delete_tasks(session: Session, project: str, tasks: Iterable[str], now: datetime.datetime) -> int:
    """Mark the annotations of tasks as deleted and forget what was predicted for them; how many annotations
    that were."""
    changed = 0
    for task in tasks:
        changed += delete_annotations(session, project, _alive(session, project, task), now)
        for table in (PredictedRegion, Prediction, Task):
            session.execute(delete(table).where(table.project == project, table.task == task))
    return changed


def delete_project(session: Session, project: str, now: datetime.datetime) -> int:
    """The same for all tasks of a project; its trained versions stay."""
    changed = delete_annotations(session, project, _alive(session, project), now)
    for table in (PredictedRegion, Prediction, Task, Project):
        session.execute(delete(table).where(table.project == project))
    return changed


def known_projects(session: Session) -> list[str]:
    """The projects that annotations or a connection are known of, by number."""
    found = set(session.scalars(select(Project.project)))
    found |= set(session.scalars(select(Annotation.project).distinct()))
    return sorted(found, key=lambda project: (len(project), project))


def _alive(session: Session, project: str, task: str | None = None) -> list[str]:
    query = select(Annotation.annotation_id).where(
        Annotation.project == project, Annotation.state != "deleted"
    )
    return list(session.scalars(query if task is None else query.where(Annotation.task == task)))
