"""The feature enhancer of Grounding DINO 1.5 Edge (arXiv:2405.10300), as its report describes it.

Only the coarsest map (P5, stride 32) meets the text, and looks at itself by plain self-attention; its few
hundred tokens make that cheap. What they learned then goes to the finer maps and back by convolutions. No
code or weights were published: where the report is silent (how maps are mixed) this follows RT-DETR
(arXiv:2304.08069), with depthwise convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from groundingml.models.grounding_dino.attention import FeedForward, MultiHeadAttention
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.enhancer import FusionLayer, TextLayer
from groundingml.models.grounding_dino.outputs import ImageFeatures, TextFeatures
from groundingml.models.linear import Linear


class EdgeEnhancer(nn.Module):
    """The interface of `FeatureEnhancer`: all levels and the text in, the same shapes out."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EdgeLayer(config) for _ in range(config.encoder_layers))
        self.mixing = CrossScaleMixing(config.d_model, config.num_levels, config.group_norm_groups)
        self.gradient_checkpointing = False

    def forward(self, image: ImageFeatures, text: TextFeatures) -> tuple[Tensor, Tensor]:
        """Returns the enhanced image tokens (B, S, C) and text tokens (B, T, C)."""
        height, width = image.spatial_shapes[-1]
        coarse = slice(image.tokens.shape[1] - height * width, None)
        tokens, text_tokens = image.tokens[:, coarse], text.tokens
        positions = image.positions[:, coarse]
        mask = None if image.mask is None else image.mask[:, coarse]
        for layer in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens, text_tokens = checkpoint(
                    layer, tokens, text_tokens, positions, mask, text, use_reentrant=False
                )
            else:
                tokens, text_tokens = layer(tokens, text_tokens, positions, mask, text)
        whole = torch.cat([image.tokens[:, : coarse.start], tokens], dim=1)
        if image.mask is not None:  # the convolutions must not carry padding into the image
            whole = whole.masked_fill(~image.mask.unsqueeze(-1), 0.0)
        maps = [
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(
                whole.split([h * w for h, w in image.spatial_shapes], dim=1),
                image.spatial_shapes,
                strict=True,
            )
        ]
        mixed = self.mixing(maps)
        return torch.cat([x.flatten(2).transpose(1, 2) for x in mixed], dim=1), text_tokens


class EdgeLayer(nn.Module):
    """Fusion, then a text layer, then plain self-attention over the coarsest map."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.fusion = FusionLayer(
            config.d_model,
            config.d_model,
            config.fusion_dim,
            config.fusion_heads,
            drop_path=config.fusion_drop_path,
            layer_norm_eps=config.layer_norm_eps,
        )
        self.text = TextLayer(config)
        self.attention = MultiHeadAttention(config.d_model, config.encoder_heads)
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.ffn = FeedForward(config.d_model, config.encoder_ffn_dim)
        self.ffn_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(
        self, image: Tensor, text_tokens: Tensor, positions: Tensor, mask: Tensor | None, text: TextFeatures
    ) -> tuple[Tensor, Tensor]:
        """image and positions (B, P, C), text_tokens (B, T, C), mask (B, P) True in the image."""
        image, text_tokens = self.fusion(image, text_tokens, mask, text.mask)
        text_tokens = self.text(text_tokens, text.positions, text.block_mask)
        query = image + positions
        seen = None if mask is None else mask[:, None, None, :]
        image = self.attention_norm(image + self.attention(query, query, image, seen))
        return self.ffn_norm(image + self.ffn(image)), text_tokens


class CrossScaleMixing(nn.Module):
    """Down the pyramid, then up again: each map is told of its neighbour."""

    def __init__(self, channels: int, levels: int, groups: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(MixBlock(channels, groups) for _ in range(levels - 1))
        self.halve = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels) for _ in range(levels - 1)
        )
        self.up = nn.ModuleList(MixBlock(channels, groups) for _ in range(levels - 1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """(B, C, H_l, W_l), finest first -> the same shapes."""
        maps = list(maps)
        for level in range(len(maps) - 2, -1, -1):
            coarser = F.interpolate(maps[level + 1], size=maps[level].shape[-2:], mode="nearest")
            maps[level] = self.down[level](maps[level], coarser)
        for level in range(1, len(maps)):
            maps[level] = self.up[level - 1](maps[level], self.halve[level - 1](maps[level - 1]))
        return maps


class MixBlock(nn.Module):
    """Two maps side by side, mixed at each pixel, then with the pixels around; added to the first."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.reduce = Linear(2 * channels, channels)
        self.reduce_norm = nn.GroupNorm(groups, channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = Linear(channels, channels)
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Both (B, C, H, W) -> the same shape."""
        mixed = F.silu(self.reduce_norm(at_each_pixel(self.reduce, torch.cat([x, other], dim=1))))
        out: Tensor = x + self.norm(at_each_pixel(self.pointwise, self.depthwise(mixed)))
        return out


def at_each_pixel(layer: Linear, x: Tensor) -> Tensor:
    """A 1x1 convolution as the linear layer that it is: (B, I, H, W) -> (B, O, H, W), channels last."""
    out: Tensor = layer(x.permute(0, 2, 3, 1))
    return out.permute(0, 3, 1, 2)
