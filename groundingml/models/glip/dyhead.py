"""The dynamic head's layer (arXiv:2106.08322): each level looks at itself and at its two neighbours through
deformable convolutions, weighs what it sees, and applies a rectifier made for this image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.linear import Linear
from groundingml.ops.deform_conv import modulated_deform_conv, reread

TAPS = 9


class DyConv(nn.Module):
    """One layer over all levels of a pyramid."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)
        self.from_above = DeformConvNorm(channels, groups, stride=1)
        self.from_same = DeformConvNorm(channels, groups, stride=1)
        self.from_below = DeformConvNorm(channels, groups, stride=2)
        self.attention = nn.Conv2d(channels, 1, 1)
        self.rectifier = DyReLU(channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(B, C, H_l, W_l), finest level first -> the same shapes."""
        refined = []
        for level, x in enumerate(maps):
            moves = self.offset(x)
            offsets, mask = moves[:, : 2 * TAPS], moves[:, 2 * TAPS :].sigmoid()
            seen = [self.from_same(x, offsets, mask)]
            if level > 0:
                seen.append(self.from_below(maps[level - 1], offsets, mask))
            if level < len(maps) - 1:
                # The map above is smaller than the offsets and masks of this level: see `reread`.
                above = self.from_above(maps[level + 1], offsets, mask)
                seen.append(F.interpolate(above, size=x.shape[-2:], mode="bilinear", align_corners=True))
            weighed = torch.stack([y * self._importance(y) for y in seen])
            refined.append(self.rectifier(weighed.mean(dim=0)))
        return tuple(refined)

    def _importance(self, x: Tensor) -> Tensor:
        """(B, 1, 1, 1) in 0.5..1: how much a source counts in this image."""
        return F.hardsigmoid(F.relu(self.attention(x.mean(dim=(2, 3), keepdim=True))))


class DeformConvNorm(nn.Module):
    """A 3x3 modulated deformable convolution and GroupNorm."""

    def __init__(self, channels: int, groups: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.norm = nn.GroupNorm(groups, channels)
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor, offsets: Tensor, mask: Tensor) -> Tensor:
        """x (B, C, H, W); offsets (B, 18, h, w) and mask (B, 9, h, w), at least as large as the output."""
        height, width = (-(-size // self.stride) for size in x.shape[-2:])
        offsets, mask = reread(offsets, height, width), reread(mask, height, width)
        out = modulated_deform_conv(x, self.weight, self.bias, offsets, mask, self.stride, padding=1)
        normed: Tensor = self.norm(out)
        return normed


class DyReLU(nn.Module):
    """The larger of two lines for each channel, chosen by the image as a whole (arXiv:2003.10027)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.reduce = Linear(channels, channels // reduction)
        self.expand = Linear(channels // reduction, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        pooled = self.expand(self.reduce(x.mean(dim=(2, 3)), "relu"))
        lines = F.hardsigmoid(pooled)[:, :, None, None] - 0.5
        slope1, shift1, slope2, shift2 = lines.chunk(4, dim=1)
        return torch.maximum(x * (2 * slope1 + 1) + shift1, x * (2 * slope2) + shift2)
