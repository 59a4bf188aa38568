"""The queue before the detectors: order, shared runs, groups, kept features, memory that runs out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from groundingml.inference import Detections, Detector, Label
from groundingml.labelstudio.inference_queue import InferenceQueue, OutOfMemory, QueueFull
from groundingml.labelstudio.metrics import Metrics
from groundingml.labelstudio.model_pool import ServedModel
from groundingml.labelstudio.task_images import TaskImage

CAT = [Label("Cat", ("cat",))]


@pytest.fixture(scope="module")
def nano() -> Detector:
    return Detector.from_pretrained("nano", device="cpu")


@pytest.fixture
def photo(photo_dir: Path) -> TaskImage:
    return TaskImage(Image.open(photo_dir / "cat.jpg").convert("RGB"), "cat")


@pytest.fixture
def queue() -> Any:
    made: list[InferenceQueue] = []

    def make(*arguments: Any, **options: Any) -> InferenceQueue:
        made.append(InferenceQueue(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def served(*detectors: Any) -> ServedModel:
    return ServedModel("test", detectors[0].checkpoint_digest, detectors)


def picture(number: int) -> TaskImage:
    return TaskImage(Image.new("RGB", (40, 30), (number, 9, 9)), str(number))


class Gate:
    """Holds a known detector at its first image until it is opened."""

    def __init__(self, detector: Any) -> None:
        self.is_held, self.open = threading.Event(), threading.Event()
        detector.before = self._hold

    def _hold(self, image: Image.Image) -> None:
        self.is_held.set()
        assert self.open.wait(30)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def ask(queue: InferenceQueue, model: ServedModel, what: TaskImage, labels: Any = CAT, **options: Any) -> Any:
    is_urgent = options.pop("is_urgent", False)
    return asyncio.ensure_future(queue.detect(model, what, labels, options, is_urgent=is_urgent))


def test_annotators_come_first(queue: Any, detector: Any) -> None:
    line, gate, model = queue(), Gate(detector), served(detector)

    async def run() -> None:
        patient = [ask(line, model, picture(number)) for number in range(4)]
        await until(gate.is_held.is_set)
        await until(lambda: line.waiting == 3)
        urgent = ask(line, model, picture(99), [Label("Dog", ("puppy",))], is_urgent=True)
        await until(lambda: line.waiting == 4)
        gate.open.set()
        await asyncio.gather(urgent, *patient)

    asyncio.run(run())
    assert [labels[0].name for labels in detector.asked] == ["Cat", "Dog", "Cat", "Cat", "Cat"]


def test_equal_questions_in_flight_share_one_run(queue: Any, detector: Any) -> None:
    metrics = Metrics()
    line, gate, model = queue(metrics=metrics), Gate(detector), served(detector)

    async def run() -> list[Detections]:
        asked = [ask(line, model, picture(1)) for _ in range(5)]
        await until(gate.is_held.is_set)
        asked.append(ask(line, model, picture(1), is_urgent=True))
        asked.append(ask(line, model, picture(1), merge_iou=0.5))
        await until(lambda: line.waiting == 1)
        asked[0].cancel()  # one of them hangs up
        gate.open.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        return found[1:]

    found = asyncio.run(run())
    assert len(detector.asked) == 2, "another option is another question"
    assert {len(one) for one in found} == {1}
    assert "groundingml_shared_runs_total 5.0" in metrics.text().decode()


def test_a_shared_run_becomes_urgent_with_its_first_annotator(queue: Any, detector: Any) -> None:
    line, gate, model = queue(), Gate(detector), served(detector)
    hold, order = detector.before, []

    def note(image: Image.Image) -> None:
        order.append(image.getpixel((0, 0))[0])  # type: ignore[index]
        hold(image)

    detector.before = note

    async def run() -> None:
        asked = [ask(line, model, picture(number)) for number in range(4)]
        await until(lambda: gate.is_held.is_set() and line.waiting == 3)
        asked.append(ask(line, model, picture(3), is_urgent=True))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(*asked)

    asyncio.run(run())
    assert order == [0, 3, 1, 2]


def test_what_nobody_waits_for_is_not_begun(queue: Any, detector: Any) -> None:
    line, gate, model = queue(), Gate(detector), served(detector)

    async def run() -> None:
        asked = [ask(line, model, picture(number)) for number in range(4)]
        await until(lambda: gate.is_held.is_set() and line.waiting == 3)
        for one in asked[1:3]:
            one.cancel()
        await until(lambda: line.waiting == 1)
        gate.open.set()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(run())
    assert len(detector.asked) == 2


def test_a_full_queue_says_when_to_come_back(queue: Any, detector: Any) -> None:
    line = queue(most_requests=2)
    with line.admit(is_urgent=False), line.admit(is_urgent=False):
        with pytest.raises(QueueFull) as full, line.admit(is_urgent=False):
            pass
        assert 1 <= full.value.retry_after_s <= 60
        with line.admit(is_urgent=True):
            pass  # batches do not take the places of annotators
    with line.admit(is_urgent=False):
        pass


def test_images_of_one_question_are_computed_together(queue: Any, detector: Any) -> None:
    line, gate, model = queue(batch_size=3), Gate(detector), served(detector)

    async def run() -> list[Detections]:
        asked = [ask(line, model, picture(0))]
        await until(gate.is_held.is_set)
        asked += [ask(line, model, picture(number)) for number in range(1, 5)]
        asked += [ask(line, model, picture(9), [Label("Dog", ("puppy",))])]
        await until(lambda: line.waiting == 5)
        gate.open.set()
        return await asyncio.gather(*asked)

    found = asyncio.run(run())
    assert detector.batches == [3]
    assert [one.labels for one in found] == [["Cat"]] * 5 + [["Dog"]]


def test_groups_give_the_boxes_of_single_images(queue: Any, nano: Detector, photo_dir: Path) -> None:
    photos = [
        TaskImage(Image.open(file).convert("RGB"), file.name) for file in sorted(photo_dir.glob("*.jpg"))
    ]
    labels = [Label("cup", ("cup",), 0.1), Label("cat", ("cat",), 0.1)]
    line, model = queue(batch_size=4), served(nano)

    async def run() -> list[Detections]:
        return list(await asyncio.gather(*(ask(line, model, photo, labels) for photo in photos[:5])))

    for photo, found in zip(photos, asyncio.run(run()), strict=False):
        alone = nano(photo.image, labels=labels)
        assert found.labels == alone.labels
        np.testing.assert_allclose(found.boxes_xyxy, alone.boxes_xyxy, atol=0.05)


def test_another_prompt_for_the_same_image_skips_the_backbone(
    queue: Any, nano: Detector, photo: TaskImage
) -> None:
    line, model, runs = queue(), served(nano), []
    hook = nano.model.backbone.register_forward_hook(lambda *_: runs.append(1))
    prompts = [[Label(name, (name,), 0.1)] for name in ("cat", "dog", "remote control")]

    async def run() -> list[Detections]:
        return [await ask(line, model, photo, labels, is_urgent=True) for labels in prompts]

    try:
        found = asyncio.run(run())
    finally:
        hook.remove()
    assert len(runs) == 1
    for labels, kept in zip(prompts, found, strict=True):
        anew = nano(photo.image, labels=labels)
        assert kept.labels == anew.labels
        np.testing.assert_array_equal(kept.boxes_xyxy, anew.boxes_xyxy)
        np.testing.assert_array_equal(kept.scores, anew.scores)


def test_kept_features_stay_within_their_limit(queue: Any, detector: Any) -> None:
    line, model = queue(feature_cache_bytes=2500), served(detector)  # each of the known detector's is 1000

    async def run() -> None:
        for number in (0, 1, 2, 0, 2, 2):
            await ask(line, model, picture(number), [Label(str(time.monotonic_ns()), ("cat",))])

    asyncio.run(run())
    assert detector.encoded == 4, "0, 1, 2, and 0 again after 2 had taken its place"


class Memory:
    """Lets the real network's backbone run out of memory for more than so many images at once."""

    def __init__(self, detector: Detector, most: int) -> None:
        self.most = most
        self.seen: list[int] = []
        self._hook = detector.model.backbone.register_forward_pre_hook(self._check)

    def _check(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self.seen.append(len(inputs[0]))
        if len(inputs[0]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def close(self) -> None:
        self._hook.remove()


def test_when_memory_runs_out_groups_are_halved_and_it_is_said(
    queue: Any, nano: Detector, photo: TaskImage, caplog: pytest.LogCaptureFixture
) -> None:
    line, model, memory = queue(batch_size=8), served(nano), Memory(nano, 2)
    same = [TaskImage(photo.image, str(number)) for number in range(9)]

    async def run() -> list[Detections]:
        first = ask(line, model, same[0])
        await until(lambda: line.running == 1)
        others = [ask(line, model, one) for one in same[1:]]
        return list(await asyncio.gather(first, *others))

    try:
        found = asyncio.run(run())
    finally:
        memory.close()
    assert max(memory.seen) > 2
    assert [one.labels for one in found] == [found[0].labels] * 9
    assert "at most 2 are computed together" in caplog.text
    assert memory.seen.count(8) <= 1, "the smaller number is kept"


def test_an_image_that_does_not_fit_alone_is_refused_by_name(
    queue: Any, nano: Detector, photo: TaskImage
) -> None:
    line, model, memory = queue(), served(nano), Memory(nano, 0)

    async def run() -> None:
        with pytest.raises(OutOfMemory, match="too little memory for this 451x300 image"):
            await ask(line, model, photo)
        memory.most = 1
        assert (await ask(line, model, photo)).labels, "the next one is answered"

    try:
        asyncio.run(run())
    finally:
        memory.close()


def test_two_devices_work_at_once(queue: Any, detector: Any) -> None:
    line, model = queue(2), served(detector, detector)
    both = threading.Barrier(2, timeout=30)
    detector.before = lambda image: both.wait()

    async def run() -> None:
        await asyncio.gather(*(ask(line, model, picture(number)) for number in range(4)))

    asyncio.run(run())
    assert not both.broken


def test_one_broken_image_of_a_group_spoils_no_other(queue: Any, detector: Any) -> None:
    line, gate, model = queue(batch_size=4), Gate(detector), served(detector)

    async def run() -> list[Any]:
        asked = [ask(line, model, picture(0))]
        await until(gate.is_held.is_set)

        def fail_at_two(image: Image.Image) -> None:
            if image.getpixel((0, 0))[0] == 2:  # type: ignore[index]
                raise ValueError("two")

        detector.before = fail_at_two
        asked += [ask(line, model, picture(number)) for number in (1, 2, 3)]
        await until(lambda: line.waiting == 3)
        gate.open.set()
        return list(await asyncio.gather(*asked, return_exceptions=True))

    found = asyncio.run(run())
    assert [isinstance(one, ValueError) for one in found] == [False, False, True, False]
