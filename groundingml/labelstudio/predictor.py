"""Tasks -> predictions: fetch the images, ask the detector, shape the answers. One bad task harms no
other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from groundingml.inference import ImageError, Label, PromptError, RunStopped, Thresholds
from groundingml.labelstudio.addresses import FetchError
from groundingml.labelstudio.editor_actions import (
    DrawnRectangle,
    TypedPrompt,
    chosen_threshold,
    newest_action,
)
from groundingml.labelstudio.images import ImageFetcher
from groundingml.labelstudio.inference_queue import InferenceQueue, OutOfMemory
from groundingml.labelstudio.label_config import LabelConfig, LabelConfigError
from groundingml.labelstudio.metrics import Metrics
from groundingml.labelstudio.model_pool import ModelPool, ServedModel
from groundingml.labelstudio.predictions import (
    failed_prediction,
    labels_of,
    prediction,
    regions_from_detections,
)
from groundingml.labelstudio.prompts import (
    Query,
    query_for_drawn,
    query_for_labels,
    query_for_text,
    with_threshold,
)
from groundingml.labelstudio.settings import Settings
from groundingml.labelstudio.task_images import TaskImages

logger = logging.getLogger(__name__)

Source = Literal["batch", "editor", "job"]
"""Who asked: Label Studio for some tasks, an annotator in the editor, a labelling job."""

IMAGES_AHEAD = 4
"""Images of one request that are held at a time, so that fetching overlaps with detecting and memory stays
small."""
IMAGES_HELD = 16
"""The same for all batch requests together; they take turns."""


class TaskError(ValueError):
    """A task cannot be predicted. The message is fit to be logged and shown."""


class TooSlow(RuntimeError):
    """So many tasks will not be done in time, as their first ones show."""


@dataclass(frozen=True)
class Asked:
    """What one request asks, beside its tasks: the same for all of them.

    project: Label Studio's id of it. version: the model version its items carry. prompts: the remembered
    ones, by control. deadline: a value of ``time.monotonic()``.
    """

    project: str
    config: LabelConfig
    model: ServedModel
    version: str
    deadline: float
    prompts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Predicted:
    """One predicted task: ``item`` is the answer for it, ``prompt`` what was asked for."""

    project: str
    task: dict[str, Any]
    item: dict[str, Any]
    prompt: dict[str, Any]
    source: Source


class Predictor:
    """Answers predict requests with the detectors of a pool.

    Args:
        on_predicted: is told of every predicted task before it is answered, and does not wait for anything.
    """

    def __init__(
        self,
        settings: Settings,
        pool: ModelPool,
        *,
        fetcher: ImageFetcher | None = None,
        on_predicted: Callable[[Predicted], None] = lambda predicted: None,
        metrics: Metrics | None = None,
    ) -> None:
        self._on_predicted = on_predicted
        self._metrics = metrics or Metrics()
        self._images = TaskImages(fetcher or ImageFetcher(settings), 2 * IMAGES_AHEAD)
        self._held = asyncio.Semaphore(IMAGES_HELD)
        self.queue = InferenceQueue(
            len(pool.devices),
            batch_size=settings.batch_size,
            most_requests=settings.most_requests,
            metrics=self._metrics,
        )

    async def predict_tasks(
        self,
        tasks: Sequence[Any],
        asked: Asked,
        *,
        is_abandoned: Callable[[], bool] = lambda: False,
        source: Source = "batch",
        too_slow_s: tuple[float, float] | None = None,
    ) -> list[dict[str, Any]]:
        """One item for each task, in order, with the project's labels.

        Tasks that are not done by the deadline get items without a result: Label Studio keeps the others, and
        asks for the missing ones the next time. Nothing more is begun once ``is_abandoned`` says that nobody
        waits for the answer.

        Args:
            too_slow_s: give up when the first tasks show that all of them take longer than the first of
                these, but not than the second.

        Raises:
            TooSlow: see ``too_slow_s``.
        """
        window = asyncio.Semaphore(IMAGES_AHEAD)
        pace = _Pace(len(tasks), too_slow_s if len(tasks) > IMAGES_AHEAD else None)

        async def predict(task: Any) -> dict[str, Any]:
            async with window, self._held:
                if pace.is_too_slow:
                    raise TooSlow
                if is_abandoned():
                    reason = "it was not begun: nobody waits for it any more, or the server is stopping"
                    return failed_prediction(reason, asked.version)
                item = await self._item_or_failure(task, asked, self._predict_labels(task, asked))
                pace.count()
                return item

        running = [asyncio.ensure_future(predict(task)) for task in tasks]
        try:
            items = list(await asyncio.gather(*running))
        finally:
            for one in running:
                one.cancel()
        self._tell(tasks, items, asked, {"typed": dict(asked.prompts)}, source)
        return items

    async def predict_for_editor(self, task: Any, asked: Asked, context_result: Any) -> dict[str, Any]:
        """The item for one task with what its annotator typed or drew last; empty when that is nothing.

        Raises:
            TaskError: when it cannot be predicted or not in time. The editor shows results only, so the
                request fails.
        """
        action = newest_action(asked.config, context_result)
        if action is None:
            return prediction([], asked.version)
        threshold = chosen_threshold(task, context_result)
        regions = self._predict_action(task, asked, action, threshold)
        item = await self._item_or_failure(task, asked, regions)
        if "result" not in item:
            raise TaskError(item["error"])
        what = {"text": action.text} if isinstance(action, TypedPrompt) else {"inside": sorted(action.labels)}
        self._tell([task], [item], asked, what, "editor")
        return item

    def close(self) -> None:
        """Finish the running images, drop what is not begun."""
        self._images.close()
        self.queue.close()

    def _tell(
        self,
        tasks: Sequence[Any],
        items: Sequence[dict[str, Any]],
        asked: Asked,
        prompt: dict[str, Any],
        source: Source,
    ) -> None:
        searched = {
            label.name: list(label.prompts) for control in asked.config.controls for label in control.labels
        }
        prompt = {"asked": searched, **prompt}
        for task, item in zip(tasks, items, strict=True):
            self._metrics.predictions.labels(source, "done" if "result" in item else "failed").inc()
            if "result" in item:
                for label in labels_of(item["result"]):
                    self._metrics.predicted(label)
                self._on_predicted(Predicted(asked.project, task, item, prompt, source))

    async def _predict_labels(self, task: Any, asked: Asked) -> list[dict[str, Any]]:
        data = _task_data(task)
        regions = []
        for image in asked.config.images:
            query = query_for_labels(asked.config, image, data, asked.prompts)
            regions += await self._regions(task, query, asked.model, is_urgent=False)
        return regions

    async def _predict_action(
        self, task: Any, asked: Asked, action: TypedPrompt | DrawnRectangle, threshold: float | None
    ) -> list[dict[str, Any]]:
        data = _task_data(task)
        drawn = action if isinstance(action, DrawnRectangle) else None
        if isinstance(action, DrawnRectangle):
            query = query_for_drawn(asked.config, action, data)
        elif action.control.image in asked.config.images:
            query = query_for_text(asked.config, action.control.image, action.text, data)
        else:
            return []
        if threshold is not None:
            query = with_threshold(query, threshold)
        return await self._regions(task, query, asked.model, is_urgent=True, inside=drawn)

    async def _regions(
        self,
        task: dict[str, Any],
        query: Query,
        model: ServedModel,
        *,
        is_urgent: bool,
        inside: DrawnRectangle | None = None,
    ) -> list[dict[str, Any]]:
        if not query.wanted:
            return []
        data = _task_data(task)
        if query.image.key not in data:
            raise TaskError(
                f'the task\'s data has no field "{query.image.key}" for <Image name="{query.image.name}">'
            )
        picture = await self._images.get(data[query.image.key], task.get("id"))
        width, height = picture.image.size
        labels, options = detector_labels(query, model.thresholds), detector_options(query)
        area = (0, 0, width, height) if inside is None else inside.area(width, height)
        if area is None:
            return []
        part = picture if inside is None else picture.crop(area)
        detections = await self.queue.detect(model, part, labels, options, is_urgent=is_urgent)
        if inside is not None:
            detections = detections.moved(area[:2], (height, width))
        return regions_from_detections(detections, query, model.thresholds)

    async def _item_or_failure(
        self, task: Any, asked: Asked, regions: Awaitable[list[dict[str, Any]]]
    ) -> dict[str, Any]:
        task_id = task.get("id") if isinstance(task, dict) else None
        try:
            found = await asyncio.wait_for(regions, asked.deadline - time.monotonic())
            return prediction(found, asked.version, asked.config.options.task_score)
        except (
            FetchError,
            ImageError,
            LabelConfigError,
            OutOfMemory,
            PromptError,
            RunStopped,
            TaskError,
        ) as error:
            reason = str(error)
        except asyncio.TimeoutError:
            reason = "there was no time left for this task in its request"
        except Exception:
            logger.exception("Task %s: the prediction failed", task_id)
            return failed_prediction("the prediction failed; the server's log says why", asked.version)
        logger.warning("Task %s: %s", task_id, reason)
        return failed_prediction(reason, asked.version)


class _Pace:
    """Tells from the first tasks of a request whether all of them will take too long."""

    def __init__(self, tasks: int, limits_s: tuple[float, float] | None) -> None:
        self._tasks = tasks
        self._limits_s = limits_s
        self._started = time.monotonic()
        self._done = 0
        self.is_too_slow = False

    def count(self) -> None:
        """One more task is done."""
        self._done += 1
        if self._limits_s is not None and self._done == IMAGES_AHEAD:
            expected = (time.monotonic() - self._started) / self._done * self._tasks
            self.is_too_slow = self._limits_s[0] < expected <= self._limits_s[1]


def _task_data(task: Any) -> dict[str, Any]:
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        raise TaskError("the task has no data")
    return data


def detector_labels(query: Query, own: Thresholds) -> list[Label]:
    """What the detector is asked for; a thing wanted by several controls with the lowest of their
    thresholds."""
    labels = []
    for wanted in query.wanted:
        thresholds = (target.threshold for target in wanted.targets)
        lowest = min(own.of(wanted.name) if threshold is None else threshold for threshold in thresholds)
        labels.append(Label(wanted.name, wanted.prompts, lowest, wanted.negative_prompts))
    return labels


def detector_options(query: Query) -> dict[str, Any]:
    """Keyword arguments for the detector, beside the labels: those options that are set."""
    options = {"merge_iou": query.options.merge_iou, "tile": query.options.tile}
    return {name: value for name, value in options.items() if value is not None}
