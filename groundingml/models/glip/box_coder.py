"""Boxes relative to anchors, as R-CNN's first code had them: from pixel 3 to pixel 5 is a width of 3."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MOST_GROWTH = math.log(1000 / 16)


def encode(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """(N, 4) boxes and their anchors in pixels -> (N, 4) deltas: moves of the centre, growth of the sides."""
    centre, size = _centre_and_size(boxes_xyxy)
    anchor_centre, anchor_size = _centre_and_size(anchors_xyxy)
    deltas = torch.cat([(centre - anchor_centre) / anchor_size, (size / anchor_size).log()], dim=-1)
    return deltas * deltas.new_tensor(WEIGHTS)


def decode(deltas: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """The inverse of `encode`; a side grows at most 62.5-fold."""
    deltas = deltas / deltas.new_tensor(WEIGHTS)
    anchor_centre, anchor_size = _centre_and_size(anchors_xyxy)
    centre = deltas[..., :2] * anchor_size + anchor_centre
    half = (deltas[..., 2:].clamp(max=MOST_GROWTH).exp() * anchor_size - 1) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def clip(boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
    """Boxes (N, 4) moved inside an image of that size; the last pixel is `width - 1`."""
    last = boxes_xyxy.new_tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes_xyxy.clamp(min=0), last)


def _centre_and_size(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return (low + high) / 2, high - low + 1
