"""Many images over several processes: the same boxes in the same order, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import groundingml
from groundingml.inference import Detections, Detector, ImageError, Label, bulk, processors
from groundingml.inference.bulk import BulkResult, WorkerError, detect_many
from groundingml.models import CheckpointError
from groundingml.models.checkpoints.native import save_native
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.network import GroundingDino

LABELS = {"cat": ["cat", "kitten"], "cup": "cup"}


@pytest.fixture(scope="module")
def model(small_config: GroundingDinoConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small model")
    save_native(GroundingDino(small_config), folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def children(parent: int) -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = status.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(ppid) == parent and state != "Z":
            found.add(int(status.parent.name))
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_give_the_detectors_own_boxes_in_order(
    model: Path, tmp_path: Path, photo_dir: Path, one_thread: None
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((photo_dir / "cat.jpg").read_bytes()[:900])
    lazy = Image.open(photo_dir / "cat.jpg")  # its pixels are not read yet
    lazy_and_cut = Image.open(cut)
    images: list[Any] = [
        photo_dir / "rocket.jpg", cut, str(photo_dir / "cat.jpg"), lazy, lazy_and_cut, pixels,
        torch.from_numpy(pixels).permute(2, 0, 1), (photo_dir / "coffee.jpg").read_bytes(), "missing.png",
    ]  # fmt: skip
    images += [pixels[:, :width] for width in range(20, 70)]
    taken = 0

    def one_by_one() -> Iterator[Any]:
        nonlocal taken
        for image in images:
            taken += 1
            yield image

    here = children(os.getpid())
    detector = Detector.from_pretrained(model, "cpu")
    results = detect_many(model, one_by_one(), LABELS, threshold=0.1, merge_iou=0.5, workers=2)
    boxes = 0
    reasons: list[tuple[str, str]] = []
    for expected_number, result in enumerate(results):
        number, found, seconds, image = result
        assert number == expected_number
        assert taken - number <= bulk._WINDOW * 2 + 1, "images are taken as they are needed"
        assert image is None, "pictures stay in the workers"
        try:
            alone = detector(images[number], LABELS, threshold=0.1, merge_iou=0.5)
        except ImageError as error:
            assert isinstance(found, ImageError)
            reasons.append((found.reason, error.reason))
            continue
        assert isinstance(found, Detections)
        assert seconds > 0
        assert np.array_equal(found.boxes_xyxy, alone.boxes_xyxy), number
        assert np.array_equal(found.scores, alone.scores), number
        assert (found.labels, found.image_size) == (alone.labels, alone.image_size)
        assert found.label_names == alone.label_names
        boxes += len(found)
    assert number == len(images) - 1
    assert boxes > 100, "the comparison was of something"
    assert len(reasons) == 3
    assert all(theirs == ours for theirs, ours in reasons)
    assert children(os.getpid()) == here, "the workers are gone"


def test_a_killed_worker_is_named(model: Path, photo: Path) -> None:
    here = children(os.getpid())
    results = detect_many(model, (photo for _ in range(100_000)), ["cat"], workers=2)
    next(results)
    victim = min(children(os.getpid()) - here)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(WorkerError, match=rf"worker \d of 2 \(process {victim}\) was killed by SIGKILL"):
        for _ in results:
            pass
    assert children(os.getpid()) == here, "the other one is gone too"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_program(model: Path, photo: Path, number: signal.Signals) -> None:
    """Neither after Ctrl-C in the terminal (all of a process group get it) nor after a kill."""
    script = (
        "import itertools, sys\n"
        "from groundingml.inference.bulk import detect_many\n"  # no main guard: workers do not need one
        "results = detect_many(sys.argv[1], itertools.repeat(sys.argv[2]), ['cat'], workers=2)\n"
        "next(results); print('begun', flush=True)\n"
        "for _ in results: pass\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(model), str(photo)],
        env={**os.environ, "PYTHONPATH": str(Path(groundingml.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n", process.communicate()[1]
        workers = children(process.pid)
        assert len(workers) == 2
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=20)
        assert "KeyboardInterrupt" in err if number == signal.SIGINT else err == ""
        assert err.count("Traceback") <= 1, "the workers say nothing"
        deadline = time.monotonic() + 10
        while any(map(is_running, workers)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(is_running, workers))
    finally:  # it never ends by itself
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_model_that_cannot_be_loaded(tmp_path: Path, photo: Path) -> None:
    here = children(os.getpid())
    with pytest.raises(CheckpointError, match="nothing"):
        next(detect_many(tmp_path / "nothing", [photo], ["cat"], workers=2))
    assert children(os.getpid()) == here


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], int]]:
    """Workers are not started; which images they would have got, and how many they would have been."""
    asked: list[tuple[list[int], int]] = []

    def give(tasks: Iterator[tuple[int, Any]], setup: Any, count: int) -> Iterator[BulkResult]:
        asked.append(([number for number, _ in tasks], count))
        return iter(())

    monkeypatch.setattr(bulk, "_in_workers", give)
    monkeypatch.setattr(bulk, "affordable_workers", lambda: 4)
    return asked


@pytest.mark.parametrize(
    ("worth_s", "images", "sized", "expected", "why"),
    [
        (20.0, 9, True, [], "little work: starting workers would cost more than they save"),
        (0.0, 9, True, [([3, 4, 5, 6, 7, 8], 4)], "much work"),
        (0.0, 5, True, [([3, 4], 2)], "not more workers than images"),
        (20.0, 9, False, [([3, 4, 5, 6, 7, 8], 4)], "an unknown number counts as many"),
    ],
)
def test_auto_starts_workers_when_they_pay(
    detector: Detector, photo: Path, no_workers: Any, monkeypatch: pytest.MonkeyPatch,
    worth_s: float, images: int, sized: bool, expected: Any, why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(bulk, "WORTH_S", worth_s)
    files: Any = [photo] * images
    results = list(
        detect_many("its source", files if sized else iter(files), ["cat"], detector=detector, threshold=0)
    )
    assert no_workers == expected, why
    here = images - sum(len(numbers) for numbers, _ in expected)
    assert [result.number for result in results] == list(range(here))
    assert all(result.image is not None for result in results)
    assert all(isinstance(result.found, Detections) and len(result.found) for result in results)


def test_this_process_only(detector: Detector, photo: Path, no_workers: Any) -> None:
    """One worker, or a detector that comes from no file; one image is taken at a time."""
    for source, workers in (("its source", 1), (None, "auto"), (None, 3)):
        taken: list[int] = []
        images = (taken.append(number) or photo for number in range(3))  # type: ignore[func-returns-value]
        for result in detect_many(source, images, ["cat"], workers=workers, detector=detector):  # type: ignore[arg-type]
            assert len(taken) == result.number + 1
        assert len(taken) == 3
    assert no_workers == []


def test_readers_ahead_keep_the_order(detector: Detector, photo: Path) -> None:
    """How a GPU is fed; the order does not depend on what decodes first."""
    tasks = enumerate([photo, "missing.png", photo, photo, "missing.png", photo])
    results = list(bulk._in_process(lambda: detector, tasks, {"labels": ["cat"]}, readers=2))
    assert [result.number for result in results] == list(range(6))
    assert [isinstance(result.found, ImageError) for result in results] == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": None}, "neither"),
        ({"caption": "a cat"}, "both"),
        ({"workers": 0}, "workers must be"),
        ({"workers": "many"}, "workers must be"),
        ({"source": None}, "source"),
        ({"device": "tpu9"}, "unknown device"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detect_many(**{"source": "nano", "images": [], "labels": ["cat"], **arguments})


def test_a_question_at_fault_is_no_images_fault(detector: Detector, photo: Path) -> None:
    with pytest.raises(ValueError, match="threshold"):
        list(detect_many(None, [photo], [Label("cat")], threshold=7, detector=detector))


def test_workers_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "usable_cores", lambda: [frozenset({n}) for n in range(8)])
    monkeypatch.setattr(bulk, "peak_memory", lambda: 1000)
    for left, expected in ((None, 8), (100_000, 8), (4000, 3), (10, 1)):
        monkeypatch.setattr(bulk, "memory_left", lambda left=left: left)
        assert bulk.affordable_workers() == expected


def test_a_container_gets_what_it_pays_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_CGROUP", tmp_path)
    monkeypatch.setattr(processors, "_TOPOLOGY", str(tmp_path / "none{}"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 6})
    assert [set(core) for core in processors.usable_cores()] == [{0}, {1}, {2}, {3}, {6}]
    for processor in (0, 1, 2, 3, 6):
        (tmp_path / f"none{processor}").write_text("0,2" if processor in (0, 2) else f"{processor}\n")
    assert [set(core) for core in processors.usable_cores()] == [{0, 2}, {1}, {3}, {6}], (
        "two threads, one core"
    )
    for quota, expected in (("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(quota)
        assert len(processors.usable_cores()) == expected
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("file 900000\nanon 400000\nanon_thp 7\n")
    assert processors.memory_left() == 600_000


def test_an_image_error_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.png", "is broken")))
    assert (error.name, error.reason, str(error)) == ("a.png", "is broken", "a.png: is broken")
