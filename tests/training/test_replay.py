"""What a model says of general images, asked again while it learns."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from groundingml.inference import Detector
from groundingml.training import ImageDataset, read_coco
from groundingml.training.mixture import Mixture
from groundingml.training.replay import own_answers, without

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


def test_own_answers_are_the_detectors_weighted_by_their_scores() -> None:
    detector = Detector.from_pretrained("nano", device="cpu")
    photos = [PHOTOS / "cat.jpg", PHOTOS / "rocket.jpg"]
    answers = own_answers(detector, photos, ["cat", "toaster"])
    direct = detector(photos[0], labels=["cat", "toaster"])
    first = answers.records[0]
    assert first.names == ("cat",) * len(direct.scores)
    assert first.weights == pytest.approx(list(direct.scores))
    assert first.boxes_xyxy[0] == pytest.approx(tuple(direct.boxes_xyxy[0]))
    assert first.absent == ("toaster",)
    rocket = answers.records[1]
    assert (rocket.boxes_xyxy, rocket.absent) == ((), ("cat", "toaster"))
    assert without(answers, ["Toaster"]).records[0].absent == ()


def test_a_mixture_has_the_share_that_was_asked_for(coco_folder: Path, model) -> None:
    main = ImageDataset(read_coco(coco_folder / "annotations.json", coco_folder), model.config)
    other = ImageDataset(read_coco(coco_folder / "annotations.json", coco_folder), model.config)
    mixture = Mixture(main, other, share=0.4)
    assert len(mixture) == 5
    assert [mixture.sample(i, random.Random(0)).source for i in range(3)] == [
        main.sample(i, random.Random(0)).source for i in range(3)
    ]
    drawn = {mixture.sample(4, random.Random(seed)).source for seed in range(30)}
    assert len(drawn) == 3
    with pytest.raises(ValueError, match="between 0 and 1"):
        Mixture(main, other, share=1.0)
