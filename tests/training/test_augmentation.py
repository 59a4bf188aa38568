"""Views of an image: what is cut, what stays visible, and that colours change no box."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from groundingml.training.augmentation import Augmentation, View, change_colours, seen_boxes

SIZE = (100, 50)


def test_boxes_are_cut_at_the_views_edge_and_small_rests_dropped() -> None:
    """The view shows x 20..60, y 10..50 of 100 x 50."""
    boxes = [
        (30.0, 20.0, 50.0, 40.0),  # whole
        (10.0, 20.0, 40.0, 40.0),  # two thirds of it are seen
        (0.0, 20.0, 24.0, 40.0),  # a sixth of it: too little
        (70.0, 20.0, 90.0, 40.0),  # nothing
        (58.5, 20.0, 61.0, 40.0),  # more than half of it, but a pixel and a half wide
    ]
    view = View(crop=(20, 10, 60, 50))
    seen, kept = seen_boxes(boxes, SIZE, view)
    assert kept == [0, 1]
    torch.testing.assert_close(seen[0], torch.tensor([20 / 40, 20 / 40, 20 / 40, 20 / 40]))
    torch.testing.assert_close(seen[1], torch.tensor([10 / 40, 20 / 40, 20 / 40, 20 / 40]))
    mirrored, _ = seen_boxes(boxes, SIZE, View(crop=view.crop, flip=True))
    torch.testing.assert_close(mirrored[1, 0], torch.tensor(30 / 40))


def test_small_boxes_of_the_whole_image_stay() -> None:
    seen, kept = seen_boxes([(10.0, 10.0, 11.0, 11.5)], SIZE, View())
    assert kept == [0]
    torch.testing.assert_close(seen[0], torch.tensor([0.105, 0.215, 0.01, 0.03]))


def test_crops_are_large_enough_lie_inside_and_show_an_object() -> None:
    augmentation = Augmentation(flip=0.0, crop=1.0, smallest_crop=0.5)
    box = (80.0, 30.0, 95.0, 45.0)
    crops = [augmentation.draw(random.Random(seed), [box], SIZE).crop for seed in range(200)]
    taken = [crop for crop in crops if crop is not None]
    assert len(taken) > 150
    assert len(set(taken)) > 100
    for left, top, right, bottom in taken:
        assert 0 <= left <= 80
        assert 95 <= right <= 100
        assert 0 <= top <= 30
        assert 45 <= bottom <= 50
        assert right - left >= 50
        assert bottom - top >= 25


def test_colours_change_by_at_most_what_is_allowed_and_one_changes_nothing() -> None:
    augmentation = Augmentation(colour_change=0.2)
    views = [augmentation.draw(random.Random(seed)) for seed in range(50)]
    factors = [factor for view in views for factor in (view.brightness, view.contrast, view.colour)]
    assert min(factors) >= 0.8
    assert max(factors) <= 1.2
    assert max(factors) - min(factors) > 0.3
    image = Image.new("RGB", (2, 2), (100, 50, 0))
    assert change_colours(image, View()) is image
    assert change_colours(image, View(brightness=2.0)).getpixel((0, 0)) == (200, 100, 0)
    assert change_colours(image, View(colour=0.0)).getpixel((0, 0)) == pytest.approx((59, 59, 59), abs=1)


def test_the_same_numbers_give_the_same_view() -> None:
    augmentation = Augmentation(shortest_sides=(32, 64), crop=0.5, colour_change=0.1)
    first, second = (augmentation.draw(random.Random(5), [], SIZE) for _ in range(2))
    assert first == second
    assert len({augmentation.draw(random.Random(seed), [], SIZE) for seed in range(20)}) == 20
