"""The one thread that owns the detector: it loads it, then runs one image at a time, while the event loop
stays free."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

    from groundingml.inference import Detections, Label, ObjectDetector

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed"]


class ModelNotReady(RuntimeError):
    """The model is still loading, or could not be loaded. The message says which."""


class ModelWorker:
    """Loads a model in the background and runs it in a thread of its own."""

    def __init__(
        self, source: str, device: str, detector: ObjectDetector | None = None, allow_cloud: bool = False
    ) -> None:
        self._allow_cloud = allow_cloud
        self._source = source
        self._device = device
        self._detector = detector
        self._finished: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._checkpoint_digest: str | None = None
        self._start_lock = threading.Lock()
        self._started = detector is not None
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="inference")
        if detector is not None:
            self._checkpoint_digest = detector.checkpoint_digest or detector.name
            self._finished.set_result(None)

    def start(self) -> None:
        """Begin to load, once. Returns at once."""
        with self._start_lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._load, name="model loader", daemon=True).start()

    @property
    def state(self) -> State:
        """Whether there is a model to predict with."""
        if not self._finished.done():
            return "loading"
        return "failed" if self._detector is None else "ready"

    @property
    def checkpoint_digest(self) -> str | None:
        """Known a little before the model is ready: the file is hashed first."""
        return self._checkpoint_digest

    async def ready(self, timeout: float) -> ObjectDetector:
        """The detector, as soon as it is there.

        Raises:
            ModelNotReady: when it is not there within ``timeout`` seconds, or will never be.
        """
        self.start()
        if not self._finished.done():
            await asyncio.wait([asyncio.wrap_future(self._finished)], timeout=timeout)
        if not self._finished.done():
            raise ModelNotReady("The model is still loading; try again in a moment.")
        if self._detector is None:
            raise ModelNotReady("The model could not be loaded; the server's log says why.")
        return self._detector

    async def detect(self, image: Image.Image, labels: Sequence[Label], **options: Any) -> Detections:
        """Run the detector on one image, after the images that were asked for before. ``options`` go to the
        detector as they are.

        Raises:
            ModelNotReady: when there is no detector yet.
        """
        detector = await self.ready(0)
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: detector(image, labels=labels, **options)
        )

    def close(self) -> None:
        """Finish the running image, drop the waiting ones."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _load(self) -> None:
        try:
            from groundingml.inference import load_detector, source_digest

            self._checkpoint_digest = source_digest(self._source)
            detector = load_detector(self._source, self._device, allow_cloud=self._allow_cloud)
            self._checkpoint_digest = detector.checkpoint_digest
            self._detector = detector
            logger.info("The model %s is ready on %s", self._source, detector.device)
        except Exception:
            logger.exception("The model %s could not be loaded", self._source)
        finally:
            self._finished.set_result(None)
