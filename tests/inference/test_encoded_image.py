"""One image, several questions: what is kept between them changes no bit of an answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from groundingml.inference import Detections, Detector, ImageError


@pytest.fixture(scope="module")
def nano() -> Detector:
    return Detector.from_pretrained("nano", device="cpu")


def assert_identical(one: Detections, other: Detections) -> None:
    assert one.labels == other.labels
    assert one.image_size == other.image_size
    np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_answers_are_identical_whatever_was_asked_before(nano: Detector, photo_dir: Path) -> None:
    photo = photo_dir / "coffee.jpg"
    encoded = nano.encode(photo)
    questions = [["cup", "spoon"], ["cat"], ["spoon"], [f"thing {i}" for i in range(150)], ["cup", "spoon"]]
    found = [nano.detect_encoded(encoded, labels, threshold=0.05) for labels in questions]
    assert len(found[0]) > 0
    for labels, detections in zip(questions, found, strict=True):
        assert_identical(detections, nano(photo, labels=labels, threshold=0.05))


def test_the_backbone_runs_once(nano: Detector, photo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    hook = nano.model.backbone.register_forward_hook(lambda *_: runs.append(1))
    try:
        encoded = nano.encode(photo_dir / "cat.jpg")
        for label in ("cat", "dog", "remote control"):
            nano.detect_encoded(encoded, [label])
    finally:
        hook.remove()
    assert len(runs) == 1


def test_its_size_is_that_of_its_tensors(nano: Detector, photo_dir: Path) -> None:
    encoded = nano.encode(photo_dir / "cat.jpg")
    tokens = encoded.features.tokens
    assert encoded.size == (300, 451)
    assert tokens.nbytes < encoded.nbytes < 20 * tokens.nbytes
    assert not tokens.requires_grad
    assert isinstance(tokens, torch.Tensor)


def test_errors_are_those_of_a_call(nano: Detector, photo_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        nano.encode(tmp_path / "none.jpg")
    encoded = nano.encode(photo_dir / "cat.jpg")
    with pytest.raises(ValueError, match="merge_iou"):
        nano.detect_encoded(encoded, ["cat"], merge_iou=2)
    with pytest.raises(ValueError, match="give either"):
        nano.detect_encoded(encoded)
    with pytest.raises(ValueError, match="threshold"):
        nano.detect_encoded(encoded, ["cat"], threshold=7)
