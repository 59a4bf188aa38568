"""Tasks -> predictions: fetch the images, ask the detector, shape the answers. One bad task harms no
other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from PIL import Image

from groundingml.inference import ImageError, Label, PromptError, Thresholds
from groundingml.labelstudio.addresses import FetchError
from groundingml.labelstudio.editor_actions import (
    DrawnRectangle,
    TypedPrompt,
    chosen_threshold,
    newest_action,
)
from groundingml.labelstudio.images import ImageFetcher
from groundingml.labelstudio.label_config import LabelConfig, LabelConfigError
from groundingml.labelstudio.predictions import failed_prediction, prediction, regions_from_detections
from groundingml.labelstudio.prompts import (
    Query,
    query_for_drawn,
    query_for_labels,
    query_for_text,
    with_threshold,
)
from groundingml.labelstudio.settings import Settings
from groundingml.labelstudio.worker import ModelWorker

logger = logging.getLogger(__name__)

IMAGES_AHEAD = 4
"""Images of one request that are held at a time, so that fetching overlaps with detecting and memory stays
small."""


class TaskError(ValueError):
    """A task cannot be predicted. The message is fit to be logged and shown."""


class Predictor:
    """Answers predict requests with the worker's detector."""

    def __init__(self, settings: Settings, worker: ModelWorker) -> None:
        self._worker = worker
        self._fetcher = ImageFetcher(settings)
        # Batches put one image at a time before the detector, so that a typed prompt waits for one only.
        self._batch_turn = asyncio.Lock()
        self._fetch_threads = concurrent.futures.ThreadPoolExecutor(
            2 * IMAGES_AHEAD, thread_name_prefix="image fetcher"
        )

    async def predict_tasks(
        self,
        tasks: Sequence[Any],
        config: LabelConfig,
        version: str,
        deadline: float,
        is_abandoned: Callable[[], bool],
    ) -> list[dict[str, Any]]:
        """One item for each task, in order, with the project's labels.

        Tasks that are not done by ``deadline`` (a value of ``time.monotonic()``) get items without a result:
        Label Studio keeps the others, and asks for the missing ones the next time. Nothing more is begun once
        ``is_abandoned`` says that nobody waits for the answer.
        """
        window = asyncio.Semaphore(IMAGES_AHEAD)

        async def predict(task: Any) -> dict[str, Any]:
            async with window:
                if is_abandoned():
                    return failed_prediction("nobody waits for the answer any more", version)
                regions = self._predict_labels(task, config)
                return await _item_or_failure(task, config, version, deadline, regions)

        return await asyncio.gather(*(predict(task) for task in tasks))

    async def predict_for_editor(
        self, task: Any, config: LabelConfig, context_result: Any, version: str, deadline: float
    ) -> dict[str, Any]:
        """The item for one task with what its annotator typed or drew last; empty when that is nothing.

        Raises:
            TaskError: when it cannot be predicted or not in time. The editor shows results only, so the
                request fails.
        """
        action = newest_action(config, context_result)
        if action is None:
            return prediction([], version)
        threshold = chosen_threshold(task, context_result)
        regions = self._predict_action(task, config, action, threshold)
        item = await _item_or_failure(task, config, version, deadline, regions)
        if "result" not in item:
            raise TaskError(item["error"])
        return item

    def close(self) -> None:
        """Drop what is not begun."""
        self._fetch_threads.shutdown(wait=False, cancel_futures=True)

    async def _predict_labels(self, task: Any, config: LabelConfig) -> list[dict[str, Any]]:
        data = _task_data(task)
        regions = []
        for image in config.images:
            regions += await self._regions(data, query_for_labels(config, image, data), self._batch_turn)
        return regions

    async def _predict_action(
        self,
        task: Any,
        config: LabelConfig,
        action: TypedPrompt | DrawnRectangle,
        threshold: float | None,
    ) -> list[dict[str, Any]]:
        data = _task_data(task)
        drawn = action if isinstance(action, DrawnRectangle) else None
        if isinstance(action, DrawnRectangle):
            query = query_for_drawn(config, action, data)
        elif action.control.image in config.images:
            query = query_for_text(config, action.control.image, action.text, data)
        else:
            return []
        if threshold is not None:
            query = with_threshold(query, threshold)
        return await self._regions(data, query, contextlib.nullcontext(), drawn)

    async def _regions(
        self,
        data: dict[str, Any],
        query: Query,
        turn: contextlib.AbstractAsyncContextManager[None],
        inside: DrawnRectangle | None = None,
    ) -> list[dict[str, Any]]:
        if not query.wanted:
            return []
        if query.image.key not in data:
            raise TaskError(
                f'the task\'s data has no field "{query.image.key}" for <Image name="{query.image.name}">'
            )
        picture: Image.Image = await asyncio.get_running_loop().run_in_executor(
            self._fetch_threads, self._fetcher.fetch, data[query.image.key]
        )
        thresholds = (await self._worker.ready(0)).thresholds
        labels, options = detector_labels(query, thresholds), detector_options(query)
        area = (0, 0, *picture.size) if inside is None else inside.area(*picture.size)
        if area is None:
            return []
        async with turn:
            detections = await self._worker.detect(
                picture if inside is None else picture.crop(area), labels, **options
            )
        if inside is not None:
            detections = detections.moved(area[:2], (picture.height, picture.width))
        return regions_from_detections(detections, query, thresholds)


async def _item_or_failure(
    task: Any,
    config: LabelConfig,
    version: str,
    deadline: float,
    regions: Awaitable[list[dict[str, Any]]],
) -> dict[str, Any]:
    task_id = task.get("id") if isinstance(task, dict) else None
    try:
        found = await asyncio.wait_for(regions, deadline - time.monotonic())
        return prediction(found, version, config.options.task_score)
    except (FetchError, ImageError, LabelConfigError, PromptError, TaskError) as error:
        reason = str(error)
    except asyncio.TimeoutError:
        reason = "there was no time left for this task in its request"
    except Exception:
        logger.exception("Task %s: the prediction failed", task_id)
        return failed_prediction("the prediction failed; the server's log says why", version)
    logger.warning("Task %s: %s", task_id, reason)
    return failed_prediction(reason, version)


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
