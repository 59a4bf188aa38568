"""Pillow images -> the padded, normalised batch that the networks read.

Equal to transformers' ``GroundingDinoImageProcessorPil``: Pillow's bilinear resize of the 8-bit pixels (with
its own rounding), then rescale and normalise, then padding with zeros at the bottom and right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """What ``model.encode_image`` takes.

    pixel_values: (B, 3, H, W) float32, zero in the padding.
    pixel_mask: (B, H, W) bool, True where there is image.
    is_padded: whether the mask is False anywhere.
    """

    pixel_values: Tensor
    pixel_mask: Tensor
    is_padded: bool


def resized_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """(height, width) after the resize: the shorter side becomes ``shortest`` unless the longer would pass
    ``longest``.

    Rounds as transformers does (down, from the unrounded shorter side); no side falls below one pixel.
    """
    short, long = min(height, width), max(height, width)
    target: float = shortest
    if long / short * shortest > longest:
        target = longest * short / long
    size = round(target)
    if size == short:
        return height, width
    other = int(target * max(height, width) / short)
    resized = (other, size) if width < height else (size, other)
    return max(1, resized[0]), max(1, resized[1])


def preprocess(
    images: Sequence[Image.Image],
    image_size: tuple[int, int],
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> ImageBatch:
    """Resize, normalise and pad RGB images into one batch.

    Args:
        images: RGB images, upright (:func:`groundingml.inference.load_image`).
        image_size: (shortest, longest) side in pixels.
        image_mean, image_std: per channel, for pixels in 0..1.
    """
    shortest, longest = image_size
    sizes = [resized_size(image.height, image.width, shortest, longest) for image in images]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    is_padded = any(size != (height, width) for size in sizes)
    make = torch.zeros if is_padded else torch.empty  # zeroing millions of numbers for nothing takes its time
    pixel_values = make(len(images), 3, height, width)
    pixel_mask = torch.zeros(len(images), height, width, dtype=torch.bool)
    # (x / 255 - mean) / std as one multiplication and one subtraction
    std = torch.tensor(image_std, dtype=torch.float64)
    scale = (1 / (255 * std)).float().tolist()
    shift = (torch.tensor(image_mean, dtype=torch.float64) / std).float().tolist()
    for row, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        resized = image if image.size == (w, h) else image.resize((w, h), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized))
        # A channel at a time stays in the cache.
        for channel, target in enumerate(pixel_values[row, :, :h, :w]):
            target.copy_(pixels[..., channel]).mul_(scale[channel]).sub_(shift[channel])
        pixel_mask[row, :h, :w] = True
    return ImageBatch(pixel_values, pixel_mask, is_padded)
