"""One square anchor in each cell of each level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def anchors_xyxy(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], scale: int, device: torch.device
) -> Tensor:
    """(S, 4) boxes in pixels, the last one inside: [-28, -28, 35, 35] comes first at stride 8 and scale 8.

    Args:
        shapes: (height, width) of each level, in cells; S is the sum of their products.
        strides: pixels from cell to cell.
        scale: an anchor's side in strides.
    """
    levels = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        half = (scale * stride - 1) / 2
        y, x = torch.meshgrid(
            torch.arange(height, device=device) * stride + (stride - 1) / 2,
            torch.arange(width, device=device) * stride + (stride - 1) / 2,
            indexing="ij",
        )
        levels.append(torch.stack([x - half, y - half, x + half, y + half], dim=-1).flatten(0, 1))
    return torch.cat(levels)
