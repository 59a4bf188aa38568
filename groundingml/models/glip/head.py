"""What each cell says: how well every token fits, where its box is, how central the cell is in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.glip.tower import LARGEST, flatten_maps
from groundingml.models.linear import Linear

PRIOR = 0.01
"""The probability that an untrained head gives to every pair of cell and token."""


class GlipHead(nn.Module):
    """Heads shared by all levels, but for one factor of the box deltas for each."""

    def __init__(self, channels: int, text_channels: int, levels: int) -> None:
        super().__init__()
        self.text_projection = Linear(text_channels, channels)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.text_bias = nn.Parameter(torch.zeros(text_channels))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - PRIOR) / PRIOR)))
        self.box = nn.Conv2d(channels, 4, 1)
        self.box_scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(levels))
        self.centerness = nn.Conv2d(channels, 1, 1)
        for layer in (self.box, self.centerness):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(
        self, maps: Sequence[Tensor], text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """maps (B, C, H_l, W_l), text (B, T, H) -> logits (B, S, T), deltas (B, S, 4), centerness (B, S)."""
        deltas = [self.box(x) * scale for x, scale in zip(maps, self.box_scales, strict=True)]
        centerness = flatten_maps([self.centerness(x) for x in maps]).squeeze(-1)
        return self.token_logits(flatten_maps(maps), text, text_mask), flatten_maps(deltas), centerness

    def token_logits(self, cells: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """cells (B, S, C), text (B, T, H) -> (B, S, T), -inf at text padding."""
        text = F.normalize(text, dim=-1)
        weights = self.text_projection(text / 2)
        bias = text @ self.text_bias + self.bias
        logits = cells @ weights.transpose(1, 2) / self.log_scale.exp() + bias.unsqueeze(1)
        return logits.clamp(-LARGEST, LARGEST).masked_fill(~text_mask.unsqueeze(1), float("-inf"))
