"""GLIP's tower: in each layer image and text are fused, the text looks at itself, DyConv refines the maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.glip.config import GlipConfig
from groundingml.models.glip.dyhead import DyConv
from groundingml.models.grounding_dino.enhancer import FusionLayer
from groundingml.models.linear import Linear

LARGEST = 50000.0
"""Where scores and activations are cut off: half precision ends at 65504."""


class TowerLayer(nn.Module):
    """Fusion and a text layer, if the config has them, then DyConv."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.fusion: GlipFusion | None = None
        self.text: GlipTextLayer | None = None
        if config.fused:
            self.fusion = GlipFusion(
                config.d_model,
                config.text_config["hidden_size"],
                config.fusion_dim,
                config.fusion_heads,
                layer_scale=1 / config.tower_layers,
            )
            self.text = GlipTextLayer(config)
        self.image = DyConv(config.d_model, config.group_norm_groups)

    def forward(
        self, maps: tuple[Tensor, ...], text: Tensor, text_mask: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """maps (B, C, H_l, W_l), text (B, T, H), text_mask (B, T) True at real tokens -> the same shapes."""
        if self.fusion is not None and self.text is not None:
            tokens, text = self.fusion(flatten_maps(maps), text, None, text_mask)
            maps = unflatten_maps(tokens, maps)
            text = self.text(text, text_mask)
        return self.image(maps), text


class GlipFusion(FusionLayer):
    """The fusion of Grounding DINO, which has it from here, with absolute bounds of the scores."""

    def bound(self, scores: Tensor) -> Tensor:
        """Without subtracting the maximum first, unlike Grounding DINO."""
        return scores.clamp(-LARGEST, LARGEST)


class GlipTextLayer(nn.Module):
    """A layer of BERT with bounds."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        width, hidden = config.text_config["hidden_size"], config.text_config["intermediate_size"]
        eps = config.text_config.get("layer_norm_eps", 1e-12)
        self.heads: int = config.text_config["num_attention_heads"]
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.output = Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)
        self.ffn_norm = nn.LayerNorm(width, eps=eps)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """text (B, T, H), mask (B, T) True at real tokens -> (B, T, H)."""
        query, key, value = (
            layer(text).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = _cut(query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]))
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        seen = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        text = self.attention_norm(text + self.output(seen))
        change = _cut(self.fc2(_cut(F.gelu(_cut(self.fc1(text))))))
        return _cut(self.ffn_norm(text + change))


def flatten_maps(maps: Sequence[Tensor]) -> Tensor:
    """(B, C, H_l, W_l) -> (B, S, C), levels one after the other, rows before columns."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def unflatten_maps(tokens: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inverse of `flatten_maps`: (B, S, C) -> maps of the shapes of ``like``."""
    levels = tokens.transpose(1, 2).split([x.shape[-2] * x.shape[-1] for x in like], dim=2)
    return tuple(level.unflatten(2, x.shape[-2:]) for level, x in zip(levels, like, strict=True))


def _cut(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST, LARGEST)
