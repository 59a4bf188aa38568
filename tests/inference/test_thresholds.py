from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from groundingml.inference import Detector, Label, Thresholds
from groundingml.inference.thresholds import ThresholdsError, read_label_thresholds
from groundingml.models import checkpoint_digest
from groundingml.models.checkpoints.sources import EMBEDDED


def test_a_label_without_its_own_takes_the_default() -> None:
    thresholds = Thresholds(0.3, {"cat": 0.6})
    assert (thresholds.of("cat"), thresholds.of("dog")) == (0.6, 0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied = tmp_path / "model"
    shutil.copytree(EMBEDDED / "nano", copied)
    return copied


def write(folder: Path, **labels: object) -> None:
    entries = {name: {"threshold": value} for name, value in labels.items()}
    (folder / "thresholds.json").write_text(json.dumps({"labels": entries}))


def test_a_folders_thresholds_are_asked_where_a_call_gives_none(folder: Path, photo_dir: Path) -> None:
    image = Image.open(photo_dir / "coffee.jpg")
    plain = Detector.from_pretrained(folder, device="cpu")
    scores = plain(image, labels=["cup", "cat"], threshold=0.0)
    best = max(score for score, label in zip(scores.scores, scores.labels, strict=True) if label == "cup")
    write(folder, cup=min(1.0, float(best) + 0.01), cat=0.0)

    fitted = Detector.from_pretrained(folder, device="cpu")
    found = fitted(image, labels=["cup", "cat"]).labels
    assert "cup" not in found
    assert "cat" in found  # although there is none
    assert "cup" in fitted(image, labels=["cup"], threshold=0.0).labels  # the call's own wins
    assert "cup" in fitted(image, labels=[Label("cup", threshold=0.0)]).labels  # and the label's own


def test_thresholds_are_part_of_what_identifies_a_model(folder: Path) -> None:
    before = checkpoint_digest(folder)
    write(folder, cup=0.4)
    one = checkpoint_digest(folder)
    write(folder, cup=0.5)
    assert len({before, one, checkpoint_digest(folder)}) == 3
    (folder / "thresholds.json").unlink()
    assert checkpoint_digest(folder) == before == checkpoint_digest("nano")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"labels": {"a": 0.5}}', '{"labels": {"a": {"threshold": 1.5}}}',
     '{"labels": {"a": {"threshold": "0.5"}}}', '{"labels": {"a": {"threshold": NaN}}}'],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "thresholds.json").write_text(text)
    with pytest.raises(ThresholdsError, match=r"thresholds\.json"):
        read_label_thresholds(tmp_path)
    assert read_label_thresholds(tmp_path / "elsewhere") == {}
