"""A real Ray cluster on this machine: two workers, one of which dies half-way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from groundingml.inference import Detections, ImageError, detect_many
from groundingml.inference.bulk import BulkResult
from groundingml.inference.ray_engine import detect_many_on_ray
from groundingml.models.checkpoints.native import save_native
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.network import GroundingDino

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'groundingml[ray]'")
pytest.importorskip("ray.data")

LABELS = {"cat": ["cat", "kitten"], "cup": "cup"}
COUNT = 120


@pytest.fixture(scope="module")
def model(small_config: GroundingDinoConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small model")
    save_native(GroundingDino(small_config), folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Many pictures, one of them broken, one missing, and some by URL."""
    folder, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    files = []
    for number in range(COUNT):
        file = folder / f"{number:03}.png"
        Image.fromarray(noise.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(file)
        files.append(f"file://{file}" if number % 3 == 0 else str(file))
    (folder / "050.png").write_bytes(b"no image")
    (folder / "070.png").unlink()
    return files


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two cores, on which Ray is left as it is after each run."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


def actors() -> list[int]:
    """Processes that hold a model."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if title.startswith(b"ray::") and (b"ImageActor" in title or b"MapWorker" in title):
            found.append(int(folder.name))
    return found


def comparable(result: BulkResult) -> Any:
    found = result.found
    if isinstance(found, ImageError):
        return result.number, found.name, found.reason
    assert isinstance(found, Detections)
    return result.number, found.boxes_xyxy.tobytes(), found.scores.tobytes(), found.labels, found.image_size


def test_a_worker_that_dies_changes_nothing(
    cluster: None, model: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundingml.inference.ray_engine.WINDOW", 96)  # so that there are two
    expected = list(detect_many(model, images, LABELS, threshold=0.0, workers=2, device="cpu"))
    found: list[BulkResult] = []
    killed: list[int] = []
    for result in detect_many_on_ray(str(model), iter(images), LABELS, threshold=0.0, workers=2):
        found.append(result)
        if not killed:
            killed = actors()
            assert killed, "there are actors"
            os.kill(killed[0], signal.SIGKILL)
    assert len(found) == COUNT
    assert [comparable(result) for result in found] == [comparable(result) for result in expected]
    assert [result.number for result in found if isinstance(result.found, ImageError)] == [50, 70]
    assert sum(len(result.found) for result in found if isinstance(result.found, Detections)) > COUNT
