"""Many images: one single-threaded model process for each core, which beats one process with many threads.

A network's layers are too short to keep all cores busy together, so two processes of one thread do twice the
work of one, where one process of two threads does about 1.7 times as much.
"""

from __future__ import annotations

import itertools
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from groundingml.inference.bulk_worker import BulkResult, ReadImage, Setup, detect_image, read_image
from groundingml.inference.devices import resolve_device
from groundingml.inference.images import ImageError, ImageSource
from groundingml.inference.labels import Labels
from groundingml.inference.loading import load_detector, runs_elsewhere
from groundingml.inference.object_detector import ObjectDetector, RunStopped
from groundingml.inference.processors import memory_left, peak_memory, usable_cores

if TYPE_CHECKING:
    from groundingml.models.glip import GlipConfig
    from groundingml.models.grounding_dino.config import GroundingDinoConfig

Workers = int | Literal["auto"]

WORTH_S = 20.0
"""Work that this process will have done within so many seconds stays in it: workers take about two seconds
each to start."""

_TRIED = 3  # images that tell how long one takes
_AHEAD = 3  # images given to a worker: one is computed, the next are decoded
_WINDOW = 16  # images under way for each worker, which bounds what waits for a slow one before it
_GPU_READERS = 4
_MEMORY_SHARE = 0.8  # of what is left, for all workers together


class WorkerError(RunStopped):
    """A worker process ended before its work did; the message names it and the image it had."""


def detect_many(
    source: str | os.PathLike[str] | None,
    images: Iterable[ImageSource],
    labels: Labels | None = None,
    caption: str | None = None,
    threshold: float | None = None,
    *,
    workers: Workers = "auto",
    detector: ObjectDetector | None = None,
    count: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    config: GroundingDinoConfig | GlipConfig | dict[str, Any] | None = None,
    **options: Any,
) -> Generator[BulkResult, None, None]:
    """Boxes on many images, in their order, by all cores of the machine.

    >>> for number, found, *_ in detect_many("nano", files, labels=["cat"]):
    ...     print(files[number], found if isinstance(found, ImageError) else found.labels)

    Images are taken from ``images`` as they are needed, a few for each worker. One that cannot be read gives
    an ``ImageError`` in its place. Workers compute on one thread, so their boxes equal, bit for bit, those of
    a detector after ``torch.set_num_threads(1)``; with more threads the last digits of a sum can differ.
    Breaking off (``close()``, an exception, Ctrl-C, even the death of this process) ends all workers.

    Args:
        source: the model, as ``load_detector`` takes it; each worker maps its file. None for
            a ``detector`` that comes from no file: then this process does everything.
        images: what ``Detector`` takes. Paths are cheap; pixels are sent to the workers.
        labels, caption, threshold, options: as in a call of ``Detector``.
        workers: processes. "auto" tries three images in this process; if the rest takes longer than
            ``WORTH_S`` seconds, a worker for each core (fewer where memory is short) does it, pinned to its
            core. 1 stays in this process. On a GPU there is one process always; threads decode for it.
        detector: one of ``source`` that is loaded already, for what is done in this process.
        count: how many images there are, where ``images`` has no length. Unknown counts as many.
        device, dtype, config: as in ``load_detector``.

    Raises:
        ValueError: wrong arguments (at once), or a question that a detector refuses (with the first result).
        RunStopped: no more can be computed: a worker was killed or crashed (WorkerError), a service refuses.
        What ``load_detector`` raises.
    """
    if source is None and detector is None:
        raise ValueError("give a source to load the model from, or a detector")
    if workers != "auto" and (not isinstance(workers, int) or workers < 1):
        raise ValueError(f'workers must be "auto" or a number of processes from 1 on, got {workers!r}')
    if (labels is None) == (caption is None):
        given = "neither" if labels is None else "both"
        raise ValueError(f"give either labels=[...] or caption='...', got {given}")
    place = resolve_device(device if detector is None else detector.device)
    asked = {"labels": labels, "caption": caption, "threshold": threshold, **options}
    question = {name: value for name, value in asked.items() if value is not None}
    left: float = math.inf if count is None else count
    if count is None and isinstance(images, Sized):
        left = len(images)

    def load() -> ObjectDetector:
        if detector is not None:
            return detector
        assert source is not None
        return load_detector(source, place, dtype, config)

    tasks = enumerate(images)
    if place.type == "cuda" or source is None or workers == 1 or runs_elsewhere(source):
        return _in_process(load, tasks, question, _GPU_READERS if place.type == "cuda" else 0)
    setup = Setup(source, dtype, config, question, frozenset())
    if workers == "auto":
        return _where_it_is_faster(load, tasks, left, setup)
    return _in_workers(tasks, setup, int(min(workers, max(left, 1))))


def _where_it_is_faster(
    load: Any, tasks: Iterator[tuple[int, ImageSource]], left: float, setup: Setup
) -> Generator[BulkResult, None, None]:
    detector = load()
    fastest = 0.0
    for result in _in_process(lambda: detector, itertools.islice(tasks, _TRIED), setup.question, 0):
        if result.image is not None:
            fastest = min(fastest or math.inf, result.seconds)
        left -= 1
        yield result
    workers = affordable_workers() if fastest and left * fastest >= WORTH_S else 1
    if workers == 1:
        yield from _in_process(lambda: detector, tasks, setup.question, 0)
    else:
        yield from _in_workers(tasks, setup, int(min(workers, left)))


def affordable_workers() -> int:
    """A worker for each core, as long as their memory suffices, each taken to be as large as this process has
    been."""
    cores, memory = len(usable_cores()), memory_left()
    if memory is None:
        return cores
    return max(1, min(cores, int(_MEMORY_SHARE * memory / peak_memory())))


def _in_process(
    load: Any, tasks: Iterator[tuple[int, ImageSource]], question: dict[str, Any], readers: int
) -> Generator[BulkResult, None, None]:
    detector: ObjectDetector = load()
    if not readers:
        for number, source in tasks:
            yield detect_image(detector, read_image(number, source), question)
        return
    with ThreadPoolExecutor(readers, "groundingml-reader") as pool:
        reading: deque[Future[ReadImage]] = deque()
        for number, source in tasks:
            reading.append(pool.submit(read_image, number, source))
            if len(reading) > readers:
                yield detect_image(detector, reading.popleft().result(), question)
        while reading:
            yield detect_image(detector, reading.popleft().result(), question)


def _in_workers(
    tasks: Iterator[tuple[int, ImageSource]], setup: Setup, count: int
) -> Generator[BulkResult, None, None]:
    cores = usable_cores()
    if count != len(cores):  # another program's workers may sit on the same few cores: leave it to the system
        cores = [frozenset()] * count
    crew: list[_Worker] = []
    try:
        for number, core in enumerate(cores, start=1):
            crew.append(_Worker(f"worker {number} of {count}", setup, core))
        yield from _in_order(crew, tasks)
    finally:
        for worker in crew:
            worker.stop()


def _in_order(
    crew: list[_Worker], tasks: Iterator[tuple[int, ImageSource]]
) -> Generator[BulkResult, None, None]:
    under_way: deque[int] = deque()
    finished: dict[int, BulkResult] = {}
    by_connection = {worker.connection: worker for worker in crew}
    while True:
        while len(under_way) < _WINDOW * len(crew):
            idlest = min(crew, key=lambda worker: len(worker.at_hand))
            if len(idlest.at_hand) >= _AHEAD:
                break
            task = next(tasks, None)
            if task is None:
                break
            number, source = task
            under_way.append(number)
            if isinstance(source, Image.Image):  # its file may be open here, and cannot go elsewhere
                read = read_image(number, source)
                if isinstance(read.image, ImageError):
                    finished[number] = BulkResult(number, read.image, read.seconds)
                    continue
                source = read.image
            idlest.give(number, source)
        if not under_way:
            return
        at_once = under_way[0] in finished
        for connection in wait(list(by_connection), 0 if at_once else None):
            assert isinstance(connection, Connection)
            result = by_connection[connection].take()
            finished[result.number] = result
        if under_way[0] in finished:
            yield finished.pop(under_way.popleft())


class _Worker:
    """A worker process, seen from the process that asks.

    A program of its own rather than a ``multiprocessing`` process, which would run the caller's main module
    again; its life hangs on the connection only.
    """

    def __init__(self, name: str, setup: Setup, core: frozenset[int]) -> None:
        self.at_hand: dict[int, str] = {}
        ours, theirs = socket.socketpair()
        with ours, theirs:
            handle = theirs.fileno()
            start = (
                f"import sys; sys.path[:] = {sys.path!r}\n"
                f"from groundingml.inference.bulk_worker import main; main({handle})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", start],
                pass_fds=[handle],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the caller's may be read by a program
                start_new_session=True,  # Ctrl-C is for the caller, who ends the workers
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
            self.connection = Connection(ours.detach())
        self._name = f"{name} (process {self._process.pid})"
        self._send(Setup(setup.source, setup.dtype, setup.config, setup.question, core))

    def give(self, number: int, source: ImageSource) -> None:
        """Hand over an image to do after those at hand."""
        self.at_hand[number] = str(source) if isinstance(source, str | Path) else f"image {number}"
        self._send((number, source))

    def take(self) -> BulkResult:
        """Wait for the next result.

        Raises:
            WorkerError: the worker is gone.
            What loading the model or the question raises.
        """
        try:
            answer = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._death() from error
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, BulkResult)
        del self.at_hand[answer.number]
        return answer

    def stop(self) -> None:
        """End the process, whatever it is doing; it holds nothing that needs care."""
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def _send(self, message: object) -> None:
        # Not Connection.send: PyTorch teaches that to hand tensors over through shared memory.
        content = pickle.dumps(message)
        try:
            self.connection.send_bytes(content)
        except OSError as error:
            raise self._death() from error

    def _death(self) -> WorkerError:
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return WorkerError(f"{self._name} answers no more{self._where()}")
        if status >= 0:
            said = f"ended with status {status}{self._where()}; see its message above"
            return WorkerError(f"{self._name} {said}")
        name = signal.Signals(-status).name if -status in list(signal.Signals) else str(-status)
        hint = (
            ": often the system's answer to too little memory, so try fewer workers"
            if -status == signal.SIGKILL
            else ""
        )
        return WorkerError(f"{self._name} was killed by {name}{self._where()}{hint}")

    def _where(self) -> str:
        return f" while it worked on {next(iter(self.at_hand.values()))}" if self.at_hand else ""
