"""Where things are: sine embeddings, reference points and coordinates in logit space.

Nothing here is learned and nothing depends on the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SpatialShapes = Sequence[tuple[int, int]]

_EPS = 1e-6


def sine_embedding(coordinates: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """Each x (...) -> (..., features): sin and cos of 2 pi x / period, over a geometric series of periods."""
    index = torch.arange(features, dtype=torch.float32, device=coordinates.device)
    periods = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / features)
    angles = coordinates.float().unsqueeze(-1) * (2 * math.pi) / periods
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def box_embedding(boxes_cxcywh: Tensor, features: int) -> Tensor:
    """Boxes (..., 4) -> (..., 4 * features), in the order y, x, width, height of the published weights."""
    embedding = sine_embedding(boxes_cxcywh, features)
    return torch.cat([embedding[..., i, :] for i in (1, 0, 2, 3)], dim=-1)


def image_embedding(mask: Tensor, channels: int, temperature: float) -> Tensor:
    """A level's mask (B, H, W) -> (B, H * W, channels): first y, then x, from 0 to 1 over the valid area."""
    rows = mask.cumsum(1, dtype=torch.float32)
    columns = mask.cumsum(2, dtype=torch.float32)
    rows = rows / (rows[:, -1:, :] + _EPS)
    columns = columns / (columns[:, :, -1:] + _EPS)
    halves = [sine_embedding(axis, channels // 2, temperature) for axis in (rows, columns)]
    return torch.cat(halves, dim=-1).flatten(1, 2)


def grid_embedding(shape: tuple[int, int], channels: int, temperature: float, device: torch.device) -> Tensor:
    """`image_embedding` of a map without padding, (1, H * W, channels): all cells of a row share their y, of
    a column their x, so that there are H + W sines and not H * W."""
    height, width = shape
    rows, columns = (torch.arange(1, size + 1, dtype=torch.float32, device=device) for size in shape)
    rows = sine_embedding(rows / (height + _EPS), channels // 2, temperature)
    columns = sine_embedding(columns / (width + _EPS), channels // 2, temperature)
    y = rows.unsqueeze(1).expand(height, width, -1)
    x = columns.unsqueeze(0).expand(height, width, -1)
    return torch.cat([y, x], dim=-1).view(1, height * width, channels)


def valid_ratio(mask: Tensor) -> Tensor:
    """Real-pixel mask (B, H, W) -> (B, 2): the fraction of the width and of the height that is no padding."""
    height, width = mask.shape[1:]
    return torch.stack([mask[:, 0, :].sum(1) / width, mask[:, :, 0].sum(1) / height], dim=-1)


def grid_centres(spatial_shapes: SpatialShapes, valid_ratios: Tensor) -> Tensor:
    """Centres of all cells, (B, S, 2) as x, y relative to the valid area (1 is its right or lower edge).

    valid_ratios: (B, L, 2) as x, y.
    """
    levels = []
    for level, (height, width) in enumerate(spatial_shapes):
        y = torch.arange(height, dtype=torch.float32, device=valid_ratios.device) + 0.5
        x = torch.arange(width, dtype=torch.float32, device=valid_ratios.device) + 0.5
        x = x / (valid_ratios[:, level, :1] * width)  # (B, width)
        y = y / (valid_ratios[:, level, 1:] * height)
        grid = torch.stack(
            [x.unsqueeze(1).expand(-1, height, -1), y.unsqueeze(2).expand(-1, -1, width)], dim=-1
        )
        levels.append(grid.flatten(1, 2))
    return torch.cat(levels, dim=1)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)) with x and 1 - x not below `eps` (as in Deformable-DETR, arXiv:2010.04159)."""
    x = x.clamp(0.0, 1.0)
    return torch.log(x.clamp(min=eps) / (1.0 - x).clamp(min=eps))
