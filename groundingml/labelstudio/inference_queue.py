"""The queue before the detectors: one thread for each device, annotators first, equal questions asked once.

The event loop stays free: it puts pictures in and awaits what is found.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from groundingml.inference.caching import ByteBoundedCache
from groundingml.labelstudio.metrics import Metrics
from groundingml.labelstudio.model_pool import ServedModel

if TYPE_CHECKING:
    from groundingml.inference import Detections, EncodedImage, Label, ObjectDetector
    from groundingml.labelstudio.task_images import TaskImage

logger = logging.getLogger(__name__)

MOST_REQUESTS = 64
"""Requests of each kind (batch, editor) that are let in at once; the next one is asked to come back."""
FEATURE_CACHE_BYTES = 256_000_000
"""Image features that are kept, so that another prompt for the same image skips the image's share."""
LONGEST_RETRY_AFTER_S = 60
_GPU_BATCH = 8


class QueueFull(RuntimeError):
    """So much is waiting that another request would not be answered in time."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("This backend has too much to do; try again in a moment.")
        self.retry_after_s = retry_after_s


class OutOfMemory(RuntimeError):
    """The device has too little memory for an image, even alone. The message says what to do."""


@dataclass
class _Job:
    """One image with one question. ``waiters`` requests want the answer."""

    model: ServedModel
    picture: TaskImage
    labels: tuple[Label, ...]
    options: dict[str, Any]
    is_urgent: bool
    key: Hashable
    found: concurrent.futures.Future[Detections] = field(default_factory=concurrent.futures.Future)
    waiters: int = 1

    @property
    def question(self) -> Hashable:
        """Jobs of equal questions may be computed together."""
        return self.key[0], self.key[2:]  # type: ignore[index]


class InferenceQueue:
    """Runs detectors, each in a thread of its own.

    Args:
        devices: how many detectors each model has.
        batch_size: images computed together; None for 8 on a GPU and 1 on a CPU, where more does not pay.
        most_requests: requests of each kind that are let in at once.
        feature_cache_bytes: see `FEATURE_CACHE_BYTES`.
    """

    def __init__(
        self,
        devices: int = 1,
        *,
        batch_size: int | None = None,
        most_requests: int = MOST_REQUESTS,
        feature_cache_bytes: int = FEATURE_CACHE_BYTES,
        metrics: Metrics | None = None,
    ) -> None:
        self._batch_size = batch_size
        self._most_requests = most_requests
        self._metrics = metrics or Metrics()
        self._changed = threading.Condition()
        self._urgent: deque[_Job] = deque()
        self._patient: deque[_Job] = deque()
        self._in_flight: dict[Hashable, _Job] = {}
        self._requests = {True: 0, False: 0}
        self._running = 0
        self._closed = False
        self._seconds_per_image: float | None = None
        self._features = [ByteBoundedCache[Any](feature_cache_bytes // devices) for _ in range(devices)]
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"inference {number}", daemon=True)
            for number in range(devices)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait for a detector."""
        return len(self._urgent) + len(self._patient)

    @property
    def running(self) -> int:
        """Images before a detector."""
        return self._running

    @property
    def seconds_per_image(self) -> float | None:
        """How long an image took lately, as a moving mean over what one device did; None before the first."""
        return self._seconds_per_image

    @contextlib.contextmanager
    def admit(self, *, is_urgent: bool) -> Iterator[None]:
        """Let a request in for as long as the block lasts. Batches do not take the places of annotators.

        Raises:
            QueueFull: when as many are in as may be.
        """
        if self._requests[is_urgent] >= self._most_requests:
            self._metrics.refused.inc()
            raise QueueFull(self._retry_after())
        self._requests[is_urgent] += 1
        try:
            yield
        finally:
            self._requests[is_urgent] -= 1

    async def detect(
        self,
        model: ServedModel,
        picture: TaskImage,
        labels: Sequence[Label],
        options: dict[str, Any],
        *,
        is_urgent: bool,
    ) -> Detections:
        """What the model finds in one picture. The same picture and question of two requests is run once.

        Args:
            options: go to the detector as they are.
            is_urgent: an annotator waits; taken before all that is not.

        Raises:
            OutOfMemory: when the device's memory does not suffice for it.
        """
        job = self._put(model, picture, tuple(labels), options, is_urgent)
        try:
            # Shielded: when one of several requests gives up, the others still want the answer.
            return await asyncio.shield(asyncio.wrap_future(job.found))
        except asyncio.CancelledError:
            self._leave(job)
            raise

    def close(self, timeout: float = 30.0) -> None:
        """Finish the running images, drop the waiting ones."""
        with self._changed:
            self._closed = True
            dropped = [*self._urgent, *self._patient]
            self._urgent.clear()
            self._patient.clear()
            self._changed.notify_all()
        for job in dropped:
            job.found.cancel()
        for thread in self._threads:
            thread.join(timeout)

    def _put(
        self,
        model: ServedModel,
        picture: TaskImage,
        labels: tuple[Label, ...],
        options: dict[str, Any],
        is_urgent: bool,
    ) -> _Job:
        key = (model.digest, picture.digest, labels, tuple(sorted(options.items(), key=lambda item: item[0])))
        with self._changed:
            if self._closed:
                raise RuntimeError("the inference queue is closed")
            job = self._in_flight.get(key)
            if job is not None and not job.found.done():
                job.waiters += 1
                self._metrics.shared.inc()
                if is_urgent and not job.is_urgent and job in self._patient:
                    self._patient.remove(job)
                    self._urgent.append(job)
                    job.is_urgent = True
                return job
            job = self._in_flight[key] = _Job(model, picture, labels, options, is_urgent, key)
            (self._urgent if is_urgent else self._patient).append(job)
            self._changed.notify()
            return job

    def _leave(self, job: _Job) -> None:
        """One of the requests for a job gave up. Nobody's job is not begun."""
        with self._changed:
            job.waiters -= 1
            if job.waiters:
                return
            queue = self._urgent if job.is_urgent else self._patient
            with contextlib.suppress(ValueError):  # it runs already
                queue.remove(job)
                self._in_flight.pop(job.key, None)

    def _work(self, device: int) -> None:
        while True:
            with self._changed:
                while not (self._urgent or self._patient or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                jobs = self._take(device)
                self._running += len(jobs)
            try:
                self._run(device, jobs)
            finally:
                with self._changed:
                    self._running -= len(jobs)
                    for job in jobs:
                        if self._in_flight.get(job.key) is job:
                            del self._in_flight[job.key]

    def _take(self, device: int) -> list[_Job]:
        """The next job, and others that can be computed together with it."""
        queue = self._urgent or self._patient
        first = queue.popleft()
        most = self._most_together(first.model.detectors[device])
        jobs = [first]
        if most > 1 and "tile" not in first.options:
            fitting = [job for job in queue if job.model is first.model and job.question == first.question]
            jobs += fitting[: most - 1]
            for job in jobs[1:]:
                queue.remove(job)
        return jobs

    def _most_together(self, detector: ObjectDetector) -> int:
        if self._batch_size is None:
            return _GPU_BATCH if str(detector.device).startswith("cuda") else 1
        return self._batch_size

    def _run(self, device: int, jobs: list[_Job]) -> None:
        """Answer the jobs, in smaller and smaller groups when memory does not suffice."""
        started = time.monotonic()
        try:
            found = self._detect(device, jobs)
        except torch.OutOfMemoryError:
            self._after_out_of_memory(device, jobs)
            return
        except Exception as error:  # noqa: BLE001  (whoever waits for the answer gets it)
            if len(jobs) == 1:
                jobs[0].found.set_exception(error)
            else:  # one of them is at fault; the others get their answers
                for job in jobs:
                    self._run(device, [job])
            return
        seconds = (time.monotonic() - started) / len(jobs)
        mean = self._seconds_per_image
        self._seconds_per_image = seconds if mean is None else 0.8 * mean + 0.2 * seconds
        self._metrics.detected(time.monotonic() - started, len(jobs))
        for job, detections in zip(jobs, found, strict=True):
            job.found.set_result(detections)

    def _detect(self, device: int, jobs: list[_Job]) -> list[Detections]:
        first = jobs[0]
        detector = first.model.detectors[device]
        if len(jobs) > 1:
            images = [job.picture.image for job in jobs]
            return detector(images, labels=first.labels, batch_size=len(images), **first.options)
        if "tile" in first.options:  # too many views to keep, and seldom asked twice
            return [detector(first.picture.image, labels=first.labels, **first.options)]
        encoded = self._encoded(device, detector, first)
        return [detector.detect_encoded(encoded, labels=first.labels, **first.options)]

    def _encoded(self, device: int, detector: ObjectDetector, job: _Job) -> EncodedImage:
        features = self._features[device]
        key = (job.model.digest, job.picture.digest)
        kept: EncodedImage | None = features.get(key)
        if kept is not None:
            self._metrics.features_reused.inc()
            return kept
        encoded = detector.encode(job.picture.image)
        features.put(key, encoded, encoded.nbytes)
        return encoded

    def _after_out_of_memory(self, device: int, jobs: list[_Job]) -> None:
        self._features[device].clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._metrics.out_of_memory.inc()
        if len(jobs) > 1:
            half = math.ceil(len(jobs) / 2)
            self._batch_size = half
            logger.warning(
                "The device ran out of memory with %d images at once; from now on at most %d are computed "
                "together",
                len(jobs),
                half,
            )
            self._run(device, jobs[:half])
            self._run(device, jobs[half:])
            return
        (job,) = jobs
        try:  # once more, without what had been kept of other images
            job.found.set_result(self._detect(device, jobs)[0])
            logger.warning("The device ran out of memory; kept image features were dropped to go on")
        except torch.OutOfMemoryError:
            job.found.set_exception(
                OutOfMemory(
                    f"the device has too little memory for this {job.picture.image.width}x"
                    f"{job.picture.image.height} image; use a smaller model, or --device cpu"
                )
            )
        except Exception as error:  # noqa: BLE001  (whoever waits for the answer gets it)
            job.found.set_exception(error)

    def _retry_after(self) -> int:
        """Seconds until what is waiting should be done."""
        seconds = (self._seconds_per_image or 1.0) * (self.waiting + self._running) / len(self._threads)
        return min(max(math.ceil(seconds), 1), LONGEST_RETRY_AFTER_S)
