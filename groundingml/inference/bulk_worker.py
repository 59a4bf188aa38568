"""One process of :func:`groundingml.inference.bulk.detect_many`: a model on one core, with one thread.

It ends as soon as the other end of its connection does, in the middle of an image too, so that nothing stays
behind a command that was killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from PIL import Image

from groundingml.inference.detections import Detections
from groundingml.inference.images import ImageError, ImageSource, load_image
from groundingml.inference.listings import ListingError, is_url, read_remote
from groundingml.inference.loading import load_detector
from groundingml.inference.object_detector import ObjectDetector, RunStopped
from groundingml.memory import keep_freed_memory


class BulkResult(NamedTuple):
    """What became of one image.

    number: the image's place among all, from 0.
    found: its boxes, or why there are none: it cannot be read, or computing failed on it.
    seconds: to decode it and find the boxes, without waiting for a turn.
    image: the upright image, where this very process has read it; None where a worker has.
    """

    number: int
    found: Detections | ImageError
    seconds: float
    image: Image.Image | None = None


@dataclass(frozen=True)
class Setup:
    """What a worker is told first."""

    source: str | os.PathLike[str]
    dtype: str
    config: Any
    question: dict[str, Any]
    """Keyword arguments of a detector's call."""
    processors: frozenset[int]
    """To run on these only; empty for any."""


class ReadImage(NamedTuple):
    """A decoded image, or why it is none, and the seconds that took."""

    number: int
    name: str
    image: Image.Image | ImageError
    seconds: float


def read_image(number: int, source: ImageSource) -> ReadImage:
    """Decode one image, fetched first from an fsspec URL; what is wrong with it is part of the answer."""
    started = time.perf_counter()
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else f"image {number}"
    image: Image.Image | ImageError
    try:
        if isinstance(source, str) and is_url(source):
            source = read_remote(source)
        image = load_image(source, name)
    except ImageError as error:
        image = error
    except (OSError, MemoryError, ListingError) as error:
        image = ImageError(name, f"{type(error).__name__}: {error}")
    return ReadImage(number, name, image, time.perf_counter() - started)


def detect_image(detector: ObjectDetector, read: ReadImage, question: dict[str, Any]) -> BulkResult:
    """The boxes of one decoded image; a failure is that image's only.

    Raises:
        ValueError: the question is at fault, not the image.
        RunStopped: no further image can be computed.
    """
    if isinstance(read.image, ImageError):
        return BulkResult(read.number, read.image, read.seconds)
    started = time.perf_counter()
    found: Detections | ImageError
    try:
        found = detector(read.image, **question)
    except ImageError as error:
        found = error
    except RunStopped:
        raise
    except (OSError, RuntimeError, MemoryError) as error:  # such as too little memory for this image
        found = ImageError(read.name, f"{type(error).__name__}: {error}")
    return BulkResult(read.number, found, read.seconds + time.perf_counter() - started, read.image)


def main(handle: int) -> None:
    """Work for the process at the other end of the socket ``handle`` until it has nothing more."""
    connection = Connection(handle)
    try:
        setup: Setup = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return
    if setup.processors:
        with contextlib.suppress(OSError):  # they were taken away meanwhile: run anywhere
            os.sched_setaffinity(0, setup.processors)
    keep_freed_memory()
    torch.set_num_threads(1)
    images: SimpleQueue[ReadImage | None] = SimpleQueue()
    threading.Thread(target=_read_ahead, args=(connection, images), daemon=True).start()
    try:
        detector = _load(setup)
        while True:
            read = images.get()
            if read is None:
                sys.exit(1)  # the reading thread has failed, and said why
            answer = detect_image(detector, read, setup.question)
            connection.send_bytes(pickle.dumps(answer._replace(image=None)))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # nobody waits for it any more
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError, ImportError) as error:
        connection.send_bytes(pickle.dumps(_picklable(error)))


def _load(setup: Setup) -> ObjectDetector:
    # Without hashing the weights again in every process.
    detector = load_detector(setup.source, "cpu", setup.dtype, setup.config, digest=False)
    detector.plan(setup.question.get("labels"), setup.question.get("caption"))
    return detector


def _read_ahead(connection: Connection, images: SimpleQueue[ReadImage | None]) -> None:
    """Decode what is asked for while the model computes; how much is ahead is the asking side's decision."""
    try:
        while True:
            images.put(read_image(*pickle.loads(connection.recv_bytes())))
    except (EOFError, ConnectionResetError):
        os._exit(0)
    finally:
        images.put(None)


def _picklable(error: Exception) -> Exception:
    """The error itself, if it survives the way to the other process."""
    try:
        pickle.loads(pickle.dumps(error))
    except (pickle.PicklingError, TypeError, AttributeError):
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
