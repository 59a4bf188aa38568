"""Images as the trainer takes them: pixels as at inference, boxes that follow the augmentation."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from groundingml.inference import load_image
from groundingml.inference.preprocessing import preprocess
from groundingml.models.grounding_dino import GroundingDino
from groundingml.training import Annotations, Augmentation, CachedBackbone, ImageDataset, View, read_coco
from groundingml.training.boxes import cxcywh_to_xyxy


@pytest.fixture
def annotations(coco_folder: Path) -> Annotations:
    return read_coco(coco_folder / "annotations.json", coco_folder)


def test_pixels_equal_those_of_inference(
    coco_folder: Path, annotations: Annotations, model: GroundingDino
) -> None:
    config = model.config
    sample = ImageDataset(annotations, config).sample(1, random.Random(0))
    expected = preprocess(
        [load_image(coco_folder / "2.png")], config.image_size, config.image_mean, config.image_std
    )
    assert sample.pixel_values is not None
    torch.testing.assert_close(sample.pixel_values, expected.pixel_values[0])
    assert sample.size == (64, 64)


def test_boxes_are_normalised(annotations: Annotations, model: GroundingDino) -> None:
    """[24, 16, 36, 36] of 64: centre (42, 34) / 64, side 36 / 64."""
    sample = ImageDataset(annotations, model.config).sample(1, random.Random(0))
    assert sample.names == ("blue square", "red square")
    assert sample.boxes_cxcywh[0].tolist() == pytest.approx([42 / 64, 34 / 64, 36 / 64, 36 / 64])
    assert sample.absent == ("green dot",)


def test_a_mirrored_view_shows_the_object_inside_its_mirrored_box(
    annotations: Annotations, model: GroundingDino
) -> None:
    """Blue is the channel of the blue square: inside its box, and only there, it stands out."""
    dataset = ImageDataset(annotations, model.config)
    sample = dataset.look(1, View(flip=True))
    assert sample.pixel_values is not None
    x0, y0, x1, y1 = (cxcywh_to_xyxy(sample.boxes_cxcywh[0]) * 64).round().int().tolist()
    assert (x0, y0, x1, y1) == (64 - 60, 16, 64 - 24, 52)
    red, blue = sample.pixel_values[0], sample.pixel_values[2]
    assert (blue[y0:y1, x0:x1] > red[y0:y1, x0:x1] + 1).all()
    assert not (blue[:, x1:] > red[:, x1:] + 1).any()


def test_the_view_decides_the_size_and_leaves_normalised_boxes_alone(
    annotations: Annotations, model: GroundingDino
) -> None:
    dataset = ImageDataset(annotations, model.config)
    small, own = dataset.look(0, View(shortest=32)), dataset.look(0, View())
    assert (small.size, own.size) == ((32, 32), (64, 64))
    assert small.boxes_cxcywh.equal(own.boxes_cxcywh)


def test_augmentation_draws_all_views_and_the_same_for_the_same_numbers(
    annotations: Annotations, model: GroundingDino
) -> None:
    dataset = ImageDataset(annotations, model.config, Augmentation(flip=0.5, shortest_sides=(32, 64)))
    views = [dataset.view(0, random.Random(seed)) for seed in range(50)]
    assert set(views) == {View(flip, side) for flip in (False, True) for side in (32, 64)}
    assert views == [dataset.view(0, random.Random(seed)) for seed in range(50)]


def test_what_is_left_or_right_is_never_mirrored(annotations: Annotations, model: GroundingDino) -> None:
    record = replace(annotations.records[0], names=("Left shoe",))
    sided = Annotations([record], ["Left shoe"], [])
    dataset = ImageDataset(sided, model.config, Augmentation(flip=1.0))
    assert dataset.view(0, random.Random(0)) == View(flip=False)


@pytest.mark.parametrize("on_disk", [False, True])
def test_cached_maps_are_those_of_the_backbone_and_computed_once(
    on_disk: bool, annotations: Annotations, model: GroundingDino, tmp_path: Path
) -> None:
    dataset = ImageDataset(annotations, model.config, Augmentation(flip=0.5))
    cached = CachedBackbone(dataset, model, tmp_path / "maps" if on_disk else None)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.backbone.register_forward_hook(count)
    model.train()
    views = set()
    for seed in range(12):
        plain, quick = dataset.sample(0, random.Random(seed)), cached.sample(0, random.Random(seed))
        views.add(dataset.view(0, random.Random(seed)))
        assert quick.pixel_values is None
        assert quick.maps is not None
        assert plain.pixel_values is not None
        assert quick.boxes_cxcywh.equal(plain.boxes_cxcywh)
        assert quick.size == plain.size
    assert calls == len(views) == 2
    assert model.backbone.training
    model.eval()
    with torch.no_grad():
        expected = model.backbone(plain.pixel_values[None])
    for got, want in zip(quick.maps, expected, strict=True):
        torch.testing.assert_close(got, want[0])
