"""Label a whole project: walk its tasks by id, detect as the backend does, store predictions in batches.

What is done is what Label Studio holds. The walk asks it for the tasks without a prediction of this version,
so a run that was killed is continued by starting it again, and nothing has to be kept on this side. Before
every attempt to store a batch it is asked once more, so that a request whose answer got lost, or another run,
does not lead to a second prediction.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from groundingml.labelstudio import task_filters
from groundingml.labelstudio.api_client import ApiError, LabelStudioApi, Refused, Unavailable
from groundingml.labelstudio.label_config import LabelConfig
from groundingml.labelstudio.labelling_report import LabellingReport
from groundingml.labelstudio.model_pool import ServedModel
from groundingml.labelstudio.predictions import labels_of
from groundingml.labelstudio.predictor import Asked, Predictor

logger = logging.getLogger(__name__)

TASKS_AT_ONCE = 4
"""Tasks whose images are fetched while another one is before the detector."""
TASK_LIMIT_S = 3600.0
"""For one task; images have a limit of their own, so this only ends what hangs."""


@dataclass(frozen=True)
class Work:
    """What to label: tasks of ``project`` for which all ``filters`` hold and which lack ``model_version``."""

    project: int
    config: LabelConfig
    model: ServedModel
    model_version: str
    filters: Sequence[dict[str, Any]] = ()
    only_missing: bool = False
    """Leave out tasks with a prediction of any version."""
    batch: int = 50
    """Predictions stored by one request."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """The project's remembered prompts, by control."""


@dataclass(frozen=True)
class _Predicted:
    task: int
    item: dict[str, Any]
    seconds: float


class ProjectLabelling:
    """One run over a project."""

    def __init__(
        self,
        api: LabelStudioApi,
        predictor: Predictor,
        work: Work,
        *,
        stop: threading.Event,
        on_start: Callable[[int], object] = lambda total: None,
        on_task: Callable[[], object] = lambda: None,
    ) -> None:
        """``stop`` ends the run after the tasks at hand; ``on_start`` gets the number of tasks, ``on_task``
        is called for each that is through the detector."""
        self._api = api
        self._predictor = predictor
        self._work = work
        self._stop = stop
        self._on_start = on_start
        self._on_task = on_task
        self._uncertain: set[int] = set()
        self.report = LabellingReport(work.model_version)

    async def run(self) -> LabellingReport:
        """Do it all. Errors of single tasks are in the report; so is what ended the run before its end."""
        storing: asyncio.Task[None] | None = None
        listing = self._list_after(0)
        try:
            tasks, total = await listing
            self.report.total = total
            self.report.already = await asyncio.to_thread(self._count_done)
            self._on_start(total)
            while tasks and not self._stop.is_set():
                listing = self._list_after(tasks[-1]["id"])  # while these are detected
                predicted = await self._predict(tasks)
                if storing is not None:
                    await storing
                storing = asyncio.create_task(asyncio.to_thread(self._store, predicted))
                tasks, _ = await listing
        except ApiError as error:
            self.report.stopped = str(error)
            listing.cancel()
        try:
            if storing is not None:
                await storing
            await asyncio.to_thread(self._remove_duplicates)
        except ApiError as error:
            self.report.stopped = self.report.stopped or str(error)
        self.report.interrupted = self._stop.is_set() and self.report.left > 0
        return self.report

    def _list_after(self, task: int) -> asyncio.Task[tuple[list[dict[str, Any]], int]]:
        # By id and not by page number: pages shift when tasks are stored, added or removed meanwhile.
        wanted = [task_filters.after(task), task_filters.not_labelled_by(self._work.model_version)]
        if self._work.only_missing:
            wanted.append(task_filters.without_predictions())
        filters = [*self._work.filters, *wanted]
        return asyncio.create_task(
            asyncio.to_thread(self._api.tasks, self._work.project, filters, self._work.batch)
        )

    def _count_done(self) -> int:
        filters = [*self._work.filters, task_filters.labelled_by(self._work.model_version)]
        return self._api.tasks(self._work.project, filters, 1)[1]

    async def _predict(self, tasks: Sequence[dict[str, Any]]) -> list[_Predicted]:
        """Predictions of those tasks that got one; reasons of the others go to the report."""
        window = asyncio.Semaphore(TASKS_AT_ONCE)

        async def predict(task: dict[str, Any]) -> _Predicted | None:
            async with window:
                if self._stop.is_set():
                    return None
                started = time.monotonic()
                (item,) = await self._predictor.predict_tasks(
                    [task],
                    Asked(
                        str(self._work.project),
                        self._work.config,
                        self._work.model,
                        self._work.model_version,
                        started + TASK_LIMIT_S,
                        self._work.prompts,
                    ),
                    source="job",
                )
                self._on_task()
                if "result" not in item:
                    self.report.fail(_name(task["id"]), item["error"])
                    return None
                return _Predicted(task["id"], item, time.monotonic() - started)

        done = await asyncio.gather(*(predict(task) for task in tasks))
        return [predicted for predicted in done if predicted is not None]

    def _store(self, predicted: Sequence[_Predicted]) -> None:
        """Store a batch; whatever happens on the way, each task ends with one prediction or in the report.

        Raises:
            ApiError: when Label Studio cannot be used any more.
        """
        pending = {one.task: one for one in predicted}
        trouble: Unavailable | None = None
        for wait in (0.0, *self._api.pauses_s):
            if trouble is not None:
                self._api.pause(max(wait, trouble.retry_after_s))
            self._settle(pending)
            if not pending:
                return
            try:
                self._import(pending.values())
            except Unavailable as error:
                trouble = error
                self._uncertain |= set(pending)
            except Refused as error:
                if error.status in (401, 403, 404):
                    raise
                self._store_singly(pending, error)
                return
            else:
                self._settle(pending)
                for task in pending:
                    self.report.fail(
                        _name(task),
                        "Label Studio did not store the prediction: by its rules it does not fit the label "
                        "config, or the task is gone",
                    )
                return
        assert trouble is not None
        if trouble.status is None:
            raise trouble
        self._store_singly(pending, trouble)  # it answers, so one of the predictions may be the trouble

    def _store_singly(self, pending: dict[int, _Predicted], error: ApiError) -> None:
        """Find out which prediction a batch was refused for."""
        if len(pending) == 1:
            (task,) = pending
            self.report.fail(_name(task), f"the prediction could not be stored: {error}")
            return
        for task, one in pending.items():
            reason = self._refusal(one)
            left = {task: one}
            self._settle(left)
            if left:
                self.report.fail(_name(task), f"the prediction could not be stored: {reason}")

    def _refusal(self, one: _Predicted) -> str:
        """Try to store one prediction; what Label Studio says to it."""
        try:
            self._import([one])
        except ApiError as error:
            if error.status is None:
                raise
            if isinstance(error, Unavailable):
                self._uncertain.add(one.task)
            return str(error)
        return "by Label Studio's rules it does not fit the label config"

    def _import(self, predicted: Collection[_Predicted]) -> None:
        self._api.import_predictions(
            self._work.project, [{"task": one.task, **one.item} for one in predicted]
        )

    def _settle(self, pending: dict[int, _Predicted]) -> None:
        """Count the pending ones that Label Studio holds, and take them out."""
        if not pending:
            return
        filters = [
            task_filters.among(pending),
            task_filters.labelled_by(self._work.model_version),
        ]
        stored, _ = self._api.tasks(self._work.project, filters, len(pending))
        for task in stored:
            one = pending.pop(task["id"], None)
            if one is not None:
                self.report.add(_name(one.task), labels_of(one.item["result"]), one.seconds)

    def _remove_duplicates(self) -> None:
        """A request that timed out may have been carried out late, after its batch was stored again."""
        for task in sorted(self._uncertain):
            own = [
                prediction["id"]
                for prediction in self._api.predictions_of(task)
                if prediction["model_version"] == self._work.model_version
            ]
            for prediction in sorted(own)[1:]:
                logger.warning("Task %d: a second prediction of this version is removed", task)
                self._api.delete_prediction(prediction)


def _name(task: int) -> str:
    return f"task {task}"
