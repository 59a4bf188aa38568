"""Repair what webhooks lost: compare a project's annotations in Label Studio with those kept here.

Label Studio waits one second for a webhook and never repeats it, so events get lost: while the server is
stopped or the disk is full. Only what differs is written; it may run while webhooks come in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from groundingml.labelstudio import task_filters
from groundingml.labelstudio.api_client import LabelStudioApi
from groundingml.labelstudio.event_payload import without_secrets
from groundingml.labelstudio.events import (
    EventError,
    Learn,
    image_fields,
    put_annotation_of_task,
    read_annotation,
    read_time,
)
from groundingml.labelstudio.inbox_processing import process_inbox
from groundingml.labelstudio.prediction_records import image_size, new_regions
from groundingml.learning.corrections import correct_task
from groundingml.store import Store, utc_now
from groundingml.store.annotations import delete_annotations
from groundingml.store.inbox import lock_annotations
from groundingml.store.predictions import NewPrediction, predictions_of, record_predictions
from groundingml.store.tables import Annotation, Project

PAGE = 100
"""Tasks asked for by one request."""
TOGETHER = 10
"""Tasks compared in one transaction: webhooks wait as long as it lasts."""
_OUR_VERSION = re.compile(r".+-[0-9a-f]{12}")


@dataclass
class SyncReport:
    """What was compared and what was repaired."""

    project: str
    tasks: int = 0
    """Tasks with annotations in Label Studio."""
    annotations: int = 0
    created: list[str] = field(default_factory=list)
    """Annotations, by id, of which nothing was known."""
    changed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    predictions: int = 0
    """Predictions that had not been recorded."""
    problems: list[str] = field(default_factory=list)
    """Annotations that cannot be read, and why."""
    interrupted: bool = False

    @property
    def repaired(self) -> int:
        """How many annotations were not as Label Studio has them."""
        return len(self.created) + len(self.changed) + len(self.deleted)


def sync_project(
    store: Store,
    api: LabelStudioApi,
    project: str,
    *,
    learn: Learn | None = None,
    on_start: Callable[[int], object] = lambda total: None,
    on_task: Callable[[], object] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> SyncReport:
    """Make what is kept of a project's annotations equal to what Label Studio has.

    Args:
        learn: see `events.Learn`.
        on_start: gets the number of tasks with annotations; ``on_task`` is called after each.
        should_stop: asked between pages; what is repaired by then stays.

    Raises:
        ApiError: Label Studio cannot be asked, or has no such project (status 404).
    """
    report = SyncReport(project)
    number = int(project)
    about = api.project(number)
    process_inbox(store, learn)  # an event that waits here is not lost
    began = utc_now()
    with store.begin() as session:
        _put_project(session, project, about)
    walk = _Walk(store, report, image_fields(about), learn)
    counts = [api.tasks(number, filters, 1)[1] for filters in _ANNOTATED]
    on_start(sum(counts))
    for filters in _ANNOTATED:
        for page in _pages(api, number, filters):
            if should_stop():
                report.interrupted = True
                return report
            walk.compare(page)
            for _ in page:
                on_task()
    report.tasks = len(walk.tasks)
    report.annotations = len(walk.seen)
    # Those not seen are gone, unless they came meanwhile, or a count that the filters go by is wrong.
    with store.read() as session:
        missing = session.execute(
            select(Annotation.annotation_id, Annotation.task).where(
                Annotation.project == project, Annotation.state != "deleted", Annotation.seen_at < began
            )
        ).all()
    doubtful = {annotation: task for annotation, task in missing if annotation not in walk.seen}
    for some in _batches(sorted(set(doubtful.values()))):
        tasks, _ = api.tasks(
            number, [task_filters.among([int(task) for task in some])], len(some), whole=True
        )
        walk.compare(tasks)
    gone = [annotation for annotation in doubtful if annotation not in walk.seen]
    for ids in _batches(gone):
        with store.begin() as session:
            lock_annotations(session)
            delete_annotations(session, project, ids, utc_now())
        report.deleted += ids
    return report


_ANNOTATED = (task_filters.annotated(), task_filters.only_skipped())


class _Walk:
    """Compares tasks as Label Studio has them with the store."""

    def __init__(
        self, store: Store, report: SyncReport, images: Mapping[str, str], learn: Learn | None
    ) -> None:
        self._store = store
        self._report = report
        self._images = images
        self._learn = learn
        self.seen: set[str] = set()
        self.tasks: set[str] = set()

    def compare(self, tasks: Sequence[Mapping[str, Any]]) -> None:
        for start in range(0, len(tasks), TOGETHER):
            with self._store.begin() as session:
                lock_annotations(session)
                for task in tasks[start : start + TOGETHER]:
                    self._compare(session, without_secrets(task))

    def _compare(self, session: Session, task: Mapping[str, Any]) -> None:
        project, task_id, now = self._report.project, str(task["id"]), utc_now()
        self.tasks.add(task_id)
        new = _missing_predictions(session, project, task_id, task.get("predictions"))
        recorded = record_predictions(session, new)
        self._report.predictions += recorded
        annotations = task.get("annotations")
        for annotation in annotations if isinstance(annotations, list) else []:
            try:
                submitted = read_annotation({**annotation, "task": task_id}, project)
            except EventError as error:
                self._report.problems.append(f"task {task_id}: {error}")
                continue
            self.seen.add(submitted.annotation_id)
            known = session.get(Annotation, submitted.annotation_id)
            before = None if known is None or known.project != project else known.state
            if put_annotation_of_task(session, submitted, task, self._images, now):
                was_known = before in ("accepted", "skipped")
                (self._report.changed if was_known else self._report.created).append(submitted.annotation_id)
                if self._learn is not None and submitted.state == "accepted":
                    self._learn(session, project, annotation)
        if recorded:
            correct_task(session, project, task_id)


def _missing_predictions(session: Session, project: str, task: str, found: Any) -> list[NewPrediction]:
    """Predictions of this backend that Label Studio has and the store has not."""
    versions = {one.model_version for one in predictions_of(session, project, task)}
    missing = []
    for prediction in found if isinstance(found, list) else []:
        version = prediction.get("model_version")
        result = prediction.get("result")
        if (
            not isinstance(version, str)
            or not isinstance(result, list)
            or not _OUR_VERSION.fullmatch(version)
        ):
            continue
        # Regions are told by their ids; a prediction without any only by its version.
        if not result and version in versions:
            continue
        score = prediction.get("score")
        missing.append(
            NewPrediction(
                project,
                task,
                version,
                "batch",
                None,
                float(score) if isinstance(score, int | float) else None,
                new_regions(result, {}),
                image_size(result),
                read_time(prediction.get("created_at"), "a prediction's created_at"),
            )
        )
    return missing


def _put_project(session: Session, project: str, about: Mapping[str, Any]) -> None:
    row = session.get(Project, project)
    if row is None:
        row = Project(project=project)
        session.add(row)
    row.title, row.label_config = about.get("title"), about.get("label_config")


def _pages(
    api: LabelStudioApi, project: int, filters: Sequence[dict[str, Any]]
) -> Iterator[list[dict[str, Any]]]:
    """Tasks by id, page by page. By id and not by page number, which shift when tasks come or go."""
    last = 0
    while True:
        tasks, _ = api.tasks(project, [*filters, task_filters.after(last)], PAGE, whole=True)
        if not tasks:
            return
        yield tasks
        last = max(int(task["id"]) for task in tasks)


def _batches(ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), PAGE):
        yield list(ids[start : start + PAGE])
