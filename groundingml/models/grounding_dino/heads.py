"""What turns a query into class logits and a box."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.positions import inverse_sigmoid
from groundingml.models.linear import Linear, batched_linear


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, channels_in: int, hidden: int, channels_out: int, layers: int) -> None:
        super().__init__()
        widths = [channels_in] + [hidden] * (layers - 1) + [channels_out]
        self.layers = nn.ModuleList(Linear(widths[i], widths[i + 1]) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels_in) -> (..., channels_out)."""
        for layer in self.layers[:-1]:
            x = layer(x, "relu")
        return self.layers[-1](x)


class BoxHead(Mlp):
    """Three layers to a change of cxcywh in logit space; begins as "no change"."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4, layers=3)
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)


class ClassHead(nn.Module):
    """Class logits by dot product with the text tokens: `scale * x . text + bias` (the bias is optional).

    With the config's `class_projection`, x goes through a linear layer first, which begins as zero.
    """

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.scale = config.class_scale
        self.projection: Linear | None = None
        if config.class_projection:
            self.projection = Linear(config.d_model, config.d_model)
            nn.init.zeros_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        self.bias: nn.Parameter | None = None
        if config.class_bias:
            # Begin at a probability of 0.01, so that the many negatives do not swamp the first steps.
            self.bias = nn.Parameter(torch.tensor(-math.log((1 - 0.01) / 0.01)))

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """x (B, Q, C), text (B, T, C), text_mask (B, T) True at real tokens -> (B, Q, T), -inf at padding."""
        if self.projection is not None:
            x = self.projection(x)
        logits = batched_linear(x, text)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.bias is not None:
            logits = logits + self.bias
        return logits.masked_fill(~text_mask.unsqueeze(1), float("-inf"))


class PredictionHeads(nn.Module):
    """A class head and a box head for each decoder layer; the layers may share one."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.eps = config.head_eps
        self.class_heads = nn.ModuleList(
            ClassHead(config) for _ in range(1 if config.share_class_head else config.decoder_layers)
        )
        self.box_heads = nn.ModuleList(
            BoxHead(config.d_model) for _ in range(1 if config.share_box_head else config.decoder_layers)
        )

    def class_head(self, layer: int) -> nn.Module:
        return self.class_heads[min(layer, len(self.class_heads) - 1)]

    def box_head(self, layer: int) -> nn.Module:
        return self.box_heads[min(layer, len(self.box_heads) - 1)]

    def boxes(self, layer: int, x: Tensor, reference: Tensor) -> Tensor:
        """x (B, Q, C) normed decoder output, reference (B, Q, 4) in 0..1 -> boxes_cxcywh (B, Q, 4)."""
        return (self.box_head(layer)(x) + inverse_sigmoid(reference, self.eps)).sigmoid()


def pad_logits(logits: Tensor, columns: int) -> Tensor:
    """(..., T) -> (..., columns), filled with -inf."""
    return F.pad(logits, (0, columns - logits.shape[-1]), value=float("-inf"))
