"""What follows from an event: annotations, corrections, tasks and training runs, in the store.

Each function may be told the same twice, or late. Times are Label Studio's where it tells them.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.orm import Session

from groundingml.labelstudio.label_config import LabelConfigError, parse_label_config
from groundingml.learning.corrections import correct
from groundingml.store.annotations import (
    Submitted,
    delete_annotations,
    delete_project,
    delete_tasks,
    put_annotation,
    put_task,
)
from groundingml.store.runs import enqueue_run
from groundingml.store.tables import InboxEvent, Project

logger = logging.getLogger(__name__)

Learn = Callable[[Session, str, Mapping[str, Any]], object]
"""Called with each annotation that was submitted, by project: it may hold a prompt to remember."""


class EventError(ValueError):
    """An event is not as Label Studio sends it. The message says what is wrong with it."""


def apply_event(session: Session, event: InboxEvent, learn: Learn | None = None) -> None:
    """Do what follows from an event, within the caller's transaction. Unknown kinds are left alone.

    Raises:
        EventError: it lacks something.
    """
    body, project, now = event.payload, event.project, event.received_at
    if project is None:
        raise EventError("it names no project")
    if event.action == "PROJECT_DELETED":
        delete_project(session, project, now)
        return
    _put_project(session, project, body.get("project"), now)
    if event.action in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED"):
        images = image_fields(body.get("project"))
        tasks = {str(task.get("id")): task for task in _objects(body, "task", "tasks")}
        for annotation in _objects(body, "annotation", "annotations"):
            submitted = read_annotation(annotation, project)
            put_annotation_of_task(session, submitted, tasks.get(submitted.task), images, now)
            if learn is not None and submitted.state == "accepted":
                learn(session, project, annotation)
    elif event.action == "ANNOTATIONS_DELETED":
        ids = [_id(annotation, "annotation") for annotation in _objects(body, "annotations", "annotation")]
        delete_annotations(session, project, ids, now)
    elif event.action == "TASKS_DELETED":
        delete_tasks(session, project, [_id(task, "task") for task in _objects(body, "tasks", "task")], now)
    elif event.action == "START_TRAINING":
        enqueue_run(session, project, "start_training", {}, "lora")


def put_annotation_of_task(
    session: Session,
    submitted: Submitted,
    task: Mapping[str, Any] | None,
    images: Mapping[str, str],
    now: datetime.datetime,
) -> bool:
    """Keep an annotation, what is known of its task, and its corrections. False when nothing changed.

    Args:
        images: {name of an `Image` tag: its field in the task's data}.
    """
    data = task.get("data") if isinstance(task, Mapping) else None
    data = data if isinstance(data, Mapping) else {}
    urls = {name: data[key] for name, key in images.items() if isinstance(data.get(key), str)}
    put_task(session, submitted.project, submitted.task, urls, now)
    row = put_annotation(session, submitted, now)
    if row is None:
        return False
    correct(session, row)
    return True


def read_annotation(annotation: Mapping[str, Any], project: str) -> Submitted:
    """An annotation as webhooks and exports write it.

    Raises:
        EventError: it lacks something.
    """
    result = annotation.get("result")
    if not isinstance(result, list):
        raise EventError("an annotation has no result")
    task = annotation.get("task")
    if isinstance(task, bool) or not isinstance(task, int | str):
        raise EventError("an annotation names no task")
    lead_time, author = annotation.get("lead_time"), annotation.get("completed_by")
    if isinstance(author, Mapping):  # exports may tell more of a person than a number
        author = author.get("id")
    return Submitted(
        annotation_id=_id(annotation, "annotation"),
        project=project,
        task=str(task),
        state="skipped" if annotation.get("was_cancelled") else "accepted",
        result=[entry for entry in result if isinstance(entry, dict)],
        completed_by=None if author is None else str(author),
        lead_time=float(lead_time) if isinstance(lead_time, int | float) else None,
        created_at=read_time(annotation.get("created_at"), "an annotation's created_at"),
        updated_at=read_time(annotation.get("updated_at"), "an annotation's updated_at"),
    )


def read_time(text: Any, what: str) -> datetime.datetime:
    """A time of Label Studio's, such as 2026-11-23T07:03:37.246625Z.

    Raises:
        EventError: it is none.
    """
    try:
        time = datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError as error:
        raise EventError(f"{what} is no time: {str(text)[:50]!r}") from error
    return time if time.tzinfo is not None else time.replace(tzinfo=datetime.timezone.utc)


def image_fields(project: Any) -> dict[str, str]:
    """{name of an `Image` tag: its field in the task's data}; empty when the label config has no rectangles
    that this backend knows."""
    xml = project.get("label_config") if isinstance(project, Mapping) else None
    if not isinstance(xml, str):
        return {}
    try:
        return {image.name: image.key for image in parse_label_config(xml).images}
    except LabelConfigError:
        return {}  # /setup and /predict have said so


def _put_project(session: Session, project: str, about: Any, now: datetime.datetime) -> None:
    row = session.get(Project, project)
    if row is None:
        row = Project(project=project)
        session.add(row)
    for name in ("title", "label_config"):
        told = about.get(name) if isinstance(about, Mapping) else None
        if isinstance(told, str) and told != getattr(row, name):
            setattr(row, name, told)
            row.updated_at = now
    session.flush()


def _objects(body: Mapping[str, Any], *names: str) -> list[Mapping[str, Any]]:
    """What stands under the first of these names: one object or a list of them."""
    for name in names:
        value = body.get(name)
        if isinstance(value, Mapping):
            return [value]
        if isinstance(value, list):
            return [one for one in value if isinstance(one, Mapping)]
    if "task" in names or "tasks" in names:
        return []
    raise EventError(f"it has no {names[0]}")


def _id(about: Mapping[str, Any], what: str) -> str:
    number = about.get("id")
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise EventError(f"{what} without an id")
    return str(number)
