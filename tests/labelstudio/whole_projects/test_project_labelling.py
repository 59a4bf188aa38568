"""Labelling a project over real HTTP: all of it, once, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from groundingml.labelstudio.api_client import LabelStudioApi
from groundingml.labelstudio.label_config import parse_label_config
from groundingml.labelstudio.labelling_report import LabellingReport
from groundingml.labelstudio.model_pool import ModelPool
from groundingml.labelstudio.predictor import Predictor
from groundingml.labelstudio.project_labelling import ProjectLabelling, Work
from groundingml.labelstudio.settings import Settings
from groundingml.labelstudio.task_filters import parse_filter
from groundingml.labelstudio.versions import model_version


@pytest.fixture
def label(detector: Any, config_xml: str) -> Callable[..., LabellingReport]:
    """label(fake, batch=..., ...) runs the job with the known detector and short pauses."""

    def run(fake: Any, stop: threading.Event | None = None, timeout_s: float = 10, **work: Any) -> Any:
        config = parse_label_config(config_xml)
        settings = Settings(label_studio_url=fake.url, label_studio_api_key=fake.token)
        pool = ModelPool("known", "cpu", detector)
        predictor = Predictor(settings, pool)
        model = asyncio.run(pool.ready(0))
        api = LabelStudioApi(fake.url, fake.token, timeout_s=timeout_s, pauses_s=(0.01, 0.02, 0.02))
        version = model_version(detector.checkpoint_digest, config)
        job = ProjectLabelling(
            api,
            predictor,
            Work(7, config, model, version, **{"batch": 3, **work}),
            stop=stop or threading.Event(),
        )
        try:
            return asyncio.run(job.run())
        finally:
            predictor.close()
            api.close()

    return run


def each_once(fake: Any, version: str) -> dict[int, list[str]]:
    return {task: [version] for task in fake.tasks}


def test_every_task_is_labelled_once(new_fake: Any, label: Any) -> None:
    fake = new_fake(8)
    report = label(fake)
    assert fake.versions() == each_once(fake, report.model_version)
    assert (report.total, report.labelled, report.left, report.failed) == (8, 8, 0, [])
    assert report.boxes == {"Cat": 8, "canine": 8}
    assert len(report.slowest) == 5
    stored = fake.predictions[0]
    assert [region["value"]["rectanglelabels"] for region in stored["result"]] == [["Cat"], ["canine"]]
    assert stored["score"] == pytest.approx(0.65)
    imports = [path for method, path in fake.requests if method == "POST"]
    assert len(imports) == 3, "batches of three"

    again = label(fake)
    assert (again.total, again.already, again.labelled) == (0, 8, 0)
    assert len(fake.predictions) == 8


def test_only_missing_and_filters(new_fake: Any, label: Any) -> None:
    fake = new_fake(6)
    fake.predictions = [{"id": 1, "task": 1, "result": [], "model_version": "another"}]
    report = label(fake, only_missing=True, filters=[parse_filter("data.site = north")])
    assert [task for task, versions in fake.versions().items() if report.model_version in versions] == [3, 5]
    report = label(fake)
    assert (report.labelled, report.already) == (4, 2), "without --only-missing other versions do not count"
    assert fake.versions()[1] == ["another", report.model_version]


def test_a_failing_task_stops_no_other(new_fake: Any, label: Any, detector: Any) -> None:
    fake = new_fake(7)
    del fake.files["/data/upload/7/2.png"]
    fake.tasks[3] = {"picture": "/data/upload/7/3.png"}
    fake.refused_tasks = {5}  # the whole batch is refused for it
    fake.dropped_tasks = {6}  # Label Studio leaves it out and says nothing

    def fail_for_four(image: Image.Image) -> None:
        if image.width == 44:
            raise RuntimeError("out of memory")

    detector.before = fail_for_four
    report = label(fake)
    assert [task for task, versions in fake.versions().items() if versions] == [1, 7]
    assert report.labelled == 2
    reasons = {int(item.split()[1]): reason for item, reason in report.failed}
    assert set(reasons) == {2, 3, 4, 5, 6}
    assert "/data/upload/7/2.png" in reasons[2]
    assert 'no field "image"' in reasons[3]
    assert "log" in reasons[4]
    assert "bad" in reasons[5]
    assert "label config" in reasons[6]
    fake.refused_tasks, fake.dropped_tasks, detector.before = set(), set(), lambda image: None
    assert label(fake).labelled == 3, "failed tasks are tried again"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_server_is_asked_again(new_fake: Any, label: Any, when: str, status: int) -> None:
    """Also when it had stored the predictions and only its answer was lost."""
    fake = new_fake(7)

    def fault(method: str, path: str, number: int, moment: str) -> tuple[int, dict[str, str]] | None:
        return (status, {"Retry-After": "0"}) if moment == when and number in (1, 3, 4) else None

    fake.fault = fault
    report = label(fake)
    images = {item for item, _ in report.failed}  # an image that cannot be read now is a failed task
    assert report.stopped is None
    assert report.labelled + len(images) == 7
    fake.fault = lambda *about: None
    report = label(fake)
    assert fake.versions() == each_once(fake, report.model_version)


def test_a_request_that_is_carried_out_late_leaves_no_duplicate(new_fake: Any, label: Any) -> None:
    fake = new_fake(3)
    slow = threading.Event()

    def fault(method: str, path: str, number: int, moment: str) -> None:
        if method == "POST" and moment == "before" and number == 1:
            slow.wait(10)  # the client gives up; this one is stored after its second attempt
        if method == "POST" and moment == "after" and number == 2:
            slow.set()
            late.wait(10)
        if method == "POST" and moment == "after" and number == 1:
            late.set()

    late = threading.Event()
    fake.fault = fault
    report = label(fake, timeout_s=0.5)
    assert fake.versions() == each_once(fake, report.model_version)
    assert ("DELETE", "/api/predictions/4/") in fake.requests, "the duplicate was there and is gone"


def test_what_another_run_stored_meanwhile_is_not_stored_again(
    new_fake: Any, label: Any, detector: Any
) -> None:
    fake = new_fake(3)
    version = label(new_fake(0)).model_version

    def store_the_second(image: Image.Image) -> None:
        if image.width == 42:
            fake.predictions.append({"id": 1, "task": 2, "result": [], "model_version": version})

    detector.before = store_the_second
    assert label(fake).left == 0
    assert fake.versions() == each_once(fake, version)


def test_a_server_that_stays_away_ends_the_run(new_fake: Any, label: Any) -> None:
    fake = new_fake(9)

    def fault(method: str, path: str, number: int, moment: str) -> tuple[int, dict[str, str]] | None:
        return (
            (503, {}) if path.startswith("/api/") and moment == "before" and is_away(path, number) else None
        )

    def is_away(path: str, number: int) -> bool:
        return number > (1 if "predictions" in path else 9)

    fake.fault = fault
    report = label(fake)
    assert report.stopped is not None
    assert "503" in report.stopped
    assert 0 < report.labelled < 9
    fake.fault = lambda *about: None
    report = label(fake)
    assert report.stopped is None
    assert fake.versions() == each_once(fake, report.model_version)


def test_stopping_finishes_what_is_at_hand(new_fake: Any, label: Any, detector: Any) -> None:
    fake = new_fake(9)
    stop = threading.Event()
    seen: list[int] = []

    def count(image: Image.Image) -> None:
        seen.append(image.width)
        if len(seen) == 5:
            stop.set()

    detector.before = count
    report = label(fake, stop)
    assert report.interrupted
    assert report.labelled == len(fake.predictions) == len(seen) < 9, "nothing that was detected is lost"
    detector.before = lambda image: None
    report = label(fake)
    assert fake.versions() == each_once(fake, report.model_version)


def test_a_refused_token_ends_the_run_with_the_reason(new_fake: Any, label: Any) -> None:
    fake = new_fake(2)
    fake.token = "f" * 40
    report = label(fake)
    assert report.stopped == "Label Studio did not accept the API key"
