"""What enhancer and decoder share: multi-head attention, deformable attention, the feed-forward block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.grounding_dino.positions import SpatialShapes
from groundingml.models.linear import Linear, feed_forward
from groundingml.ops import ms_deform_attn_from_offsets

Sampler: TypeAlias = "Callable[[Tensor, SpatialShapes, Tensor, Tensor, Tensor], Tensor]"
"""What `ms_deform_attn_from_offsets` is; an export puts another in its place."""


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with four projections."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(channels, channels)
        self.key = Linear(channels, channels)
        self.value = Linear(channels, channels)
        self.output = Linear(channels, channels)
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (B, Q, C), key and value (B, K, C) -> (B, Q, C).

        mask: broadcastable to (B, 1, Q, K), True = may attend; None means everywhere.
        """
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(out.transpose(1, 2).flatten(2))


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (arXiv:2010.04159): a query samples points near its reference."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sample: Sampler = ms_deform_attn_from_offsets
        self.sampling_offsets = Linear(channels, heads * levels * points * 2)
        self.attention_weights = Linear(channels, heads * levels * points)
        self.value = Linear(channels, channels)
        self.output = Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each head begins by looking in its own direction, each point a step further, with equal weights."""
        if self.value.weight.is_meta:
            return  # the weights will come from a file
        angles = torch.arange(self.heads, dtype=torch.float32) * (2.0 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = (directions[:, None, None, :] * steps[:, None]).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(offsets.flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
            for layer in (self.value, self.output):
                nn.init.xavier_uniform_(layer.weight)
                layer.bias.zero_()

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        shapes: SpatialShapes,
    ) -> Tensor:
        """Sample `memory` around the reference points.

        Args:
            query: (B, Q, C), positions included.
            reference_points: (B, Q, L, 2) or (B, Q, L, 4), relative to the padded map of each level.
            memory: (B, S, C).
            memory_mask: (B, S) True where there is image, or None.
            shapes: (height, width) of each level.

        Returns:
            (B, Q, C)
        """
        value = self.value(memory)
        if memory_mask is not None:
            value = value.masked_fill(~memory_mask.unsqueeze(-1), 0.0)
        value = value.unflatten(-1, (self.heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (self.heads, self.levels, self.points, 2))
        logits = self.attention_weights(query).unflatten(-1, (self.heads, self.levels * self.points))
        return self.output(self.sample(value, shapes, reference_points, offsets, logits))


class FeedForward(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.fc2 = Linear(hidden, channels)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return feed_forward(x, self.fc1, self.fc2, "relu")
