"""The feature pyramid (arXiv:1612.03144): the backbone's maps, each told of those above, and two more."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class FeaturePyramid(nn.Module):
    """Strides 8, 16, 32 in; 8, 16, 32, 64, 128 out, the fourth made of the third's output."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.extra = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(B, C_l, H_l, W_l) of the backbone -> (B, C, H_l, W_l), two levels more."""
        inner = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for level in range(len(inner) - 2, -1, -1):
            size = inner[level].shape[-2:]
            inner[level] = inner[level] + F.interpolate(inner[level + 1], size=size, mode="nearest")
        pyramid = [output(x) for output, x in zip(self.output, inner, strict=True)]
        pyramid.append(self.extra[0](pyramid[-1]))
        pyramid.append(self.extra[1](F.relu(pyramid[-1])))
        return tuple(pyramid)
