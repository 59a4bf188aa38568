"""Pictures of tasks as the predictor holds them, the latest ones kept decoded for the next question."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import time
from dataclasses import dataclass

from PIL import Image

from groundingml.inference.caching import ByteBoundedCache
from groundingml.labelstudio.images import ImageFetcher

RECENT_BYTES = 192_000_000
RECENT_S = 300.0
"""A picture is fetched again after so long, since what stands behind its URL may change."""


@dataclass(frozen=True)
class TaskImage:
    """An upright RGB picture; ``digest`` tells pictures with other pixels apart."""

    image: Image.Image
    digest: str

    @property
    def nbytes(self) -> int:
        """Memory that its pixels take."""
        return 4 * self.image.width * self.image.height  # Pillow keeps RGB in four bytes

    def crop(self, area: tuple[int, int, int, int]) -> TaskImage:
        """The part inside (left, top, right, bottom) pixels."""
        return TaskImage(self.image.crop(area), f"{self.digest} {area}")


class TaskImages:
    """Fetches pictures in threads, each once at a time, and keeps the latest."""

    def __init__(self, fetcher: ImageFetcher, threads: int) -> None:
        self._fetcher = fetcher
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="image fetcher")
        self._recent: ByteBoundedCache[tuple[TaskImage, float]] = ByteBoundedCache(RECENT_BYTES)
        self._fetching: dict[str, concurrent.futures.Future[TaskImage]] = {}

    async def get(self, reference: object, task: object = None) -> TaskImage:
        """The picture that a task's field names; ``task`` is Label Studio's id of the task.

        Raises:
            FetchError: as `ImageFetcher.fetch` does.
        """
        key = reference if isinstance(reference, str) else repr(reference)
        if len(key) > 200:  # a data: URI
            key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        kept = self._recent.get(key)
        if kept is not None and time.monotonic() - kept[1] < RECENT_S:
            return kept[0]
        fetching = self._fetching.get(key)
        if fetching is None:
            fetching = self._threads.submit(self._fetch, key, reference, task)
            self._fetching[key] = fetching
            fetching.add_done_callback(lambda _: self._fetching.pop(key, None))
        return await asyncio.shield(asyncio.wrap_future(fetching))

    def close(self) -> None:
        """Drop what is not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, key: str, reference: object, task: object) -> TaskImage:
        image, digest = self._fetcher.fetch_with_digest(reference, task)
        picture = TaskImage(image, digest)
        self._recent.put(key, (picture, time.monotonic()), picture.nbytes)
        return picture
