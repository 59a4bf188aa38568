"""Which model serves which project, with real models: switching, unloading, failing."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import groundingml
from groundingml.inference import Detector
from groundingml.labelstudio.label_config import parse_label_config
from groundingml.labelstudio.model_pool import ModelNotReady, ModelPool, ServedModel
from groundingml.labelstudio.predictor import Asked, Predictor
from groundingml.labelstudio.settings import Settings
from groundingml.labelstudio.versions import model_version
from groundingml.models import checkpoint_digest

WAIT_S = 120


@pytest.fixture(scope="module")
def nano() -> Detector:
    return Detector.from_pretrained("nano", device="cpu")


@pytest.fixture
def pool(nano: Detector) -> ModelPool:
    return ModelPool("nano", "cpu", nano, most_versions=1)


@pytest.fixture
def version(tmp_path: Path) -> Callable[[str, float], str]:
    """A function that writes a version folder whose cat needs at least some score; its path."""

    def write(name: str, threshold: float) -> str:
        folder = tmp_path / name
        shutil.copytree(Path(groundingml.__file__).parent / "embedded" / "nano", folder)
        text = f'{{"labels": {{"Cat": {{"threshold": {threshold}}}}}}}'
        (folder / "thresholds.json").write_text(text)
        return str(folder)

    return write


def ready(pool: ModelPool, project: str) -> ServedModel:
    return asyncio.run(pool.ready(WAIT_S, project))


def test_a_project_is_switched_and_others_are_not(pool: ModelPool, version: Any, nano: Detector) -> None:
    folder = version("v1", 0.77)
    before = ready(pool, "7")
    assert (before.digest, before.detectors) == (nano.checkpoint_digest, (nano,))
    loaded = pool.use("7", folder)
    assert ready(pool, "7") is before or loaded.done(), "served as before until it is loaded"
    served = loaded.result(WAIT_S)
    assert ready(pool, "7") is served
    assert served.digest == checkpoint_digest(folder) == pool.checkpoint_digest("7") != before.digest
    assert (served.thresholds.of("Cat"), served.thresholds.of("Dog")) == (0.77, nano.default_threshold)
    assert ready(pool, "8") is before, "another project keeps the base model"
    assert pool.checkpoint_digest("8") == before.digest
    assert before.detectors[0](Path(groundingml.__file__).parent.parent / "examples/photos/cat.jpg", ["cat"])
    assert pool.use("7", None).result(1) is before
    assert ready(pool, "7") is before, "rolled back at once, since the base model stays loaded"


def test_the_version_used_longest_ago_is_unloaded_and_comes_back(pool: ModelPool, version: Any) -> None:
    one, two = version("v1", 0.5), version("v2", 0.6)
    first = pool.use("1", one).result(WAIT_S)
    assert ready(pool, "1") is first
    pool.use("2", two).result(WAIT_S)
    assert ready(pool, "2").thresholds.of("Cat") == 0.6
    states = {model.source: model.state for model in pool.models()}
    assert states == {"nano": "ready", two: "ready", one: "loading"}, "of one version there is room"
    assert pool.checkpoint_digest("1") == first.digest, "its name is known all the same"
    again = ready(pool, "1")
    assert again is not first
    assert (again.digest, again.thresholds) == (first.digest, first.thresholds)


def test_a_version_that_cannot_be_loaded_changes_nothing(
    pool: ModelPool, version: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = pool.use("7", version("v1", 0.5)).result(WAIT_S)
    (tmp_path / "empty").mkdir()
    failed = pool.use("7", str(tmp_path / "empty"))
    assert failed.exception(WAIT_S) is not None
    assert ready(pool, "7") is good
    assert "empty could not be loaded" in caplog.text
    assert {model.state for model in pool.models() if model.projects} == {"ready"}


def test_the_later_of_two_wishes_holds(pool: ModelPool, version: Any, nano: Detector) -> None:
    slow = pool.use("7", version("v1", 0.5))
    pool.use("7", None)
    slow.result(WAIT_S)
    assert ready(pool, "7").detectors == (nano,), (
        "what was loaded after the wish had changed is not switched to"
    )


def test_at_the_start_requests_wait_for_the_version(pool: ModelPool, version: Any, tmp_path: Path) -> None:
    folder = version("v1", 0.5)
    pool.use("7", folder, at_once=True)
    assert ready(pool, "7").source == folder
    pool.use("9", str(tmp_path / "gone"), at_once=True)
    with pytest.raises(ModelNotReady, match="could not be loaded"):
        ready(pool, "9")


def test_one_copy_for_each_device(photo_dir: Path) -> None:
    pool = ModelPool("nano", "cpu, cpu")
    model = ready(pool, "1")
    assert len(model.detectors) == 2
    one, other = (detector(photo_dir / "cat.jpg", labels=["cat"]) for detector in model.detectors)
    assert one.labels == other.labels
    assert one.scores.tolist() == other.scores.tolist()
    assert model.detectors[0] is not model.detectors[1]


def test_a_request_that_runs_finishes_on_the_model_it_began_with(
    detector: Any, version: Any, site: Any, allow: Any, config_xml: str
) -> None:
    """Switched in the middle of a batch: no item is lost, none is of another version than the others."""
    pool = ModelPool("known", "cpu", detector)
    predictor = Predictor(Settings(allow_hosts=allow), pool)
    config = parse_label_config(config_xml)
    held, go_on = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        held.set()
        assert go_on.wait(WAIT_S)

    detector.before = hold
    photos = [f"{site.url}/photos/{name}.jpg" for name in ("cat", "coffee", "astronaut")]
    tasks = [{"id": number, "data": {"image": photo}} for number, photo in enumerate(photos)]

    async def predict() -> list[dict[str, Any]]:
        model = await pool.ready(WAIT_S, "1")
        digest = model_version(model.digest, config)
        return await predictor.predict_tasks(
            tasks, Asked("1", config, model, digest, time.monotonic() + WAIT_S)
        )

    async def run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        running = asyncio.ensure_future(predict())
        await asyncio.to_thread(held.wait, WAIT_S)
        await asyncio.to_thread(pool.use("1", version("v1", 0.2)).result, WAIT_S)
        go_on.set()
        return await running, await predict()

    try:
        before, after = asyncio.run(run())
    finally:
        predictor.close()
    (old,), (new,) = ({item["model_version"] for item in items} for items in (before, after))
    assert (old.split("-")[0], new.split("-")[0]) == ("0123456789ab", pool.checkpoint_digest("1"))
    assert all("result" in item for item in before + after)
    assert len(detector.asked) == 3
