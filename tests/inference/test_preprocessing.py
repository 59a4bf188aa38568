from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)

from groundingml.inference.preprocessing import preprocess, resized_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("sizes", "image_size"),
    [
        ([(640, 480)], (800, 1333)),
        ([(480, 640)], (800, 1333)),
        ([(2000, 500)], (800, 1333)),  # the longer side decides
        ([(1066, 800)], (800, 1333)),  # nothing to resize
        ([(3, 2)], (64, 96)),
        ([(333, 501), (640, 480), (97, 310)], (320, 500)),  # padding
        ([(640, 480), (300, 300)], (416, 416)),
    ],
)
def test_equals_the_processor_of_transformers(
    sizes: list[tuple[int, int]], image_size: tuple[int, int]
) -> None:
    images = [noise(*size) for size in sizes]
    processor = GroundingDinoImageProcessorPil(
        size={"shortest_edge": image_size[0], "longest_edge": image_size[1]}, image_mean=MEAN, image_std=STD
    )
    theirs = processor(images, return_tensors="pt")
    ours = preprocess(images, image_size, MEAN, STD)
    assert ours.pixel_values.shape == theirs["pixel_values"].shape
    assert (ours.pixel_values - theirs["pixel_values"]).abs().max() <= 1e-5
    assert torch.equal(ours.pixel_mask, theirs["pixel_mask"].bool())
    assert ours.is_padded == (not bool(theirs["pixel_mask"].all()))


def test_equals_transformers_on_a_photo(photo_dir: Path) -> None:
    image = Image.open(photo_dir / "astronaut.jpg").convert("RGB")
    theirs = GroundingDinoImageProcessorPil()(image, return_tensors="pt")["pixel_values"]
    assert (preprocess([image], (800, 1333), MEAN, STD).pixel_values - theirs).abs().max() <= 1e-5


def test_sizes_round_as_in_transformers() -> None:
    dice = random.Random(0)
    for _ in range(5000):
        height, width = dice.randint(1, 4000), dice.randint(1, 4000)
        shortest = dice.choice([800, 416, 333])
        longest = dice.choice([1333, 1000])
        expected = get_size_with_aspect_ratio((height, width), shortest, longest)
        assert resized_size(height, width, shortest, longest) == tuple(max(1, side) for side in expected)


def test_a_very_thin_image_keeps_one_pixel() -> None:
    assert resized_size(1, 5000, 800, 1333) == (1, 1333)
    assert preprocess([noise(5000, 1)], (800, 1333), MEAN, STD).pixel_values.shape == (1, 3, 1, 1333)


def test_other_mean_and_deviation() -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 51))
    values = preprocess([image], (8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.25)).pixel_values[0, :, 0, 0]
    assert values.tolist() == pytest.approx([1.0, -1.0, -1.2], abs=1e-6)
