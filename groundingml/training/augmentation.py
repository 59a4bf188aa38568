"""Looking at an image in other ways: mirrored, cut, larger or smaller, in other colours; never turned.

Photos stay upright, since what stands upright is part of what things look like.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from groundingml.training.boxes import xyxy_to_cxcywh

_TRIES = 10


@dataclass(frozen=True)
class View:
    """How an image is looked at.

    flip: mirrored or not. shortest: the shortest side in pixels (None: the model's own size). crop: the part
    that is seen, (left, top, right, bottom) in pixels. brightness, contrast, colour: factors, 1 changes
    nothing.
    """

    flip: bool = False
    shortest: int | None = None
    crop: tuple[int, int, int, int] | None = None
    brightness: float = 1.0
    contrast: float = 1.0
    colour: float = 1.0


@dataclass(frozen=True)
class Augmentation:
    """Draws views.

    flip: probability of mirroring. shortest_sides: one is drawn each time (none: the model's own). crop:
    probability of seeing a part only, whose sides are at least ``smallest_crop`` of the image's; a part that
    shows no whole object is not taken where the image has one. colour_change: most by which brightness,
    contrast and saturation are raised or lowered; 0.2 is by a fifth.
    """

    flip: float = 0.5
    shortest_sides: tuple[int, ...] = ()
    crop: float = 0.0
    smallest_crop: float = 0.6
    colour_change: float = 0.0

    def draw(
        self,
        rng: random.Random,
        boxes_xyxy: Sequence[tuple[float, float, float, float]] = (),
        size: tuple[int, int] | None = None,
    ) -> View:
        """A view of an image of ``size`` (width, height) with boxes in pixels; without a size never cut."""
        flip = rng.random() < self.flip
        shortest = rng.choice(self.shortest_sides) if self.shortest_sides else None
        crop = None
        if size is not None and self.crop > 0 and rng.random() < self.crop:
            crop = self._draw_crop(rng, boxes_xyxy, size)
        if self.colour_change == 0:
            return View(flip, shortest, crop)
        factors = [1 + rng.uniform(-self.colour_change, self.colour_change) for _ in range(3)]
        return View(flip, shortest, crop, *factors)

    def _draw_crop(
        self,
        rng: random.Random,
        boxes_xyxy: Sequence[tuple[float, float, float, float]],
        size: tuple[int, int],
    ) -> tuple[int, int, int, int] | None:
        width, height = size
        for _ in range(_TRIES):
            w = max(1, round(width * rng.uniform(self.smallest_crop, 1.0)))
            h = max(1, round(height * rng.uniform(self.smallest_crop, 1.0)))
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            right, bottom = left + w, top + h
            whole = any(
                left <= x0 and top <= y0 and x1 <= right and y1 <= bottom for x0, y0, x1, y1 in boxes_xyxy
            )
            if whole or not boxes_xyxy:
                return left, top, right, bottom
        return None


def seen_boxes(
    boxes_xyxy: Sequence[tuple[float, float, float, float]], size: tuple[int, int], view: View
) -> tuple[Tensor, list[int]]:
    """Where the boxes (N, in pixels of the image of ``size``, width and height) are in a view.

    Boxes are cut at the view's edge. Of those that the cut leaves, too little to be recognised (a quarter of
    the area, or 2 pixels) are dropped.

    Returns:
        (M, 4) cxcywh relative to the view, and which M of the N boxes these are.
    """
    left, top, right, bottom = view.crop or (0, 0, *size)
    boxes = torch.tensor(boxes_xyxy, dtype=torch.float64).reshape(-1, 4)
    origin = torch.tensor([left, top, left, top], dtype=torch.float64)
    extent = torch.tensor([right - left, bottom - top] * 2, dtype=torch.float64)
    cut = torch.minimum((boxes - origin).clamp(min=0), extent)
    sides, whole = cut[:, 2:] - cut[:, :2], boxes[:, 2:] - boxes[:, :2]
    enough = (sides.prod(dim=1) >= 0.25 * whole.prod(dim=1)) & (sides.amin(dim=1) >= 2.0)
    kept = (enough | (sides == whole).all(dim=1)).nonzero().flatten()
    seen = xyxy_to_cxcywh(cut[kept] / extent).float()
    if view.flip:
        seen[:, 0] = 1 - seen[:, 0]
    return seen, kept.tolist()


def change_colours(image: Image.Image, view: View) -> Image.Image:
    """The image (RGB) with the view's brightness, contrast and saturation."""
    changes = (
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.colour),
    )
    for enhance, factor in changes:
        if factor != 1.0:
            image = enhance(image).enhance(factor)
    return image
