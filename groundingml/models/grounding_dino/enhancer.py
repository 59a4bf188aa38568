"""The feature enhancer: image tokens and text tokens are refined together, layer by layer.

Each layer lets image and text look at each other (fusion), then the text at itself within its phrases, then the
image at itself by deformable attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groundingml.models.drop_path import DropPath
from groundingml.models.grounding_dino.attention import DeformableAttention, FeedForward, MultiHeadAttention
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.outputs import ImageFeatures, TextFeatures
from groundingml.models.grounding_dino.positions import SpatialShapes


class FeatureEnhancer(nn.Module):
    """The stack of enhancer layers."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EnhancerLayer(config) for _ in range(config.encoder_layers))
        self.gradient_checkpointing = False

    def forward(self, image: ImageFeatures, text: TextFeatures) -> tuple[Tensor, Tensor]:
        """Returns the enhanced image tokens (B, S, C) and text tokens (B, T, C)."""
        image_tokens, text_tokens = image.tokens, text.tokens
        # A cell's centre in the coordinates of each level's padded map: (B, S, 1, 2) * (B, 1, L, 2).
        references = image.centres.unsqueeze(2) * image.valid_ratios.unsqueeze(1)
        for layer in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                image_tokens, text_tokens = checkpoint(
                    layer, image_tokens, text_tokens, image, text, references, use_reentrant=False
                )
            else:
                image_tokens, text_tokens = layer(image_tokens, text_tokens, image, text, references)
        return image_tokens, text_tokens


class EnhancerLayer(nn.Module):
    """Fusion, then a text layer, then a deformable image layer."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.fusion = FusionLayer(config)
        self.text = TextLayer(config)
        self.image = DeformableLayer(config)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image: ImageFeatures,
        text: TextFeatures,
        references: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(B, S, C), (B, T, C) -> the same shapes."""
        image_tokens, text_tokens = self.fusion(image_tokens, text_tokens, image.mask, text.mask)
        text_tokens = self.text(text_tokens, text.positions, text.block_mask)
        image_tokens = self.image(image_tokens, image.positions, references, image.mask, image.spatial_shapes)
        return image_tokens, text_tokens


class FusionLayer(nn.Module):
    """Image tokens attend to text and text to image through one shared matrix of scores (GLIP, arXiv:2112.03857).

    The residual is added to the NORMED input, as in the original.
    """

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        channels, width = config.d_model, config.fusion_dim
        self.heads = config.fusion_heads
        self.image_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.text_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.image_query = nn.Linear(channels, width)
        self.text_key = nn.Linear(channels, width)
        self.image_value = nn.Linear(channels, width)
        self.text_value = nn.Linear(channels, width)
        self.image_output = nn.Linear(width, channels)
        self.text_output = nn.Linear(width, channels)
        self.image_scale = nn.Parameter(torch.full((channels,), 1e-4))
        self.text_scale = nn.Parameter(torch.full((channels,), 1e-4))
        self.drop_path = DropPath(config.fusion_drop_path)
        for layer in (
            self.image_query,
            self.text_key,
            self.image_value,
            self.text_value,
            self.image_output,
            self.text_output,
        ):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """image (B, S, C), text (B, T, C), masks (B, S) and (B, T) True at real tokens -> the same shapes."""
        image, text = self.image_norm(image), self.text_norm(text)
        query, image_value = (self._heads(layer(image)) for layer in (self.image_query, self.image_value))
        key, text_value = (self._heads(layer(text)) for layer in (self.text_key, self.text_value))
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, M, S, T)
        # Softmax does not see a shift, so the original's "minus the maximum, not below -50000" is this bound. The
        # maximum is each sample's own here: a sample's result does not depend on the rest of its batch.
        scores = scores.clamp(min=scores.amax(dim=(1, 2, 3), keepdim=True) - 50000.0)
        to_text = scores.masked_fill(~text_mask[:, None, None, :], float("-inf")).softmax(dim=-1)
        to_image = scores.transpose(-1, -2)
        if image_mask is not None:
            to_image = to_image.masked_fill(~image_mask[:, None, None, :], float("-inf"))
        to_image = to_image.softmax(dim=-1)
        image_change = self.image_output((to_text @ text_value).transpose(1, 2).flatten(2))
        text_change = self.text_output((to_image @ image_value).transpose(1, 2).flatten(2))
        image = image + self.drop_path(self.image_scale * image_change)
        text = text + self.drop_path(self.text_scale * text_change)
        return image, text

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, M * D) -> (B, M, N, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TextLayer(nn.Module):
    """Self-attention within phrases and a feed-forward block, post-norm."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config.d_model, config.text_heads)
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.ffn = FeedForward(config.d_model, config.text_ffn_dim)
        self.ffn_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(self, text: Tensor, positions: Tensor, block_mask: Tensor) -> Tensor:
        """text and positions (B, T, C), block_mask (B, T, T) True = may attend -> (B, T, C)."""
        query = text + positions
        text = self.attention_norm(text + self.attention(query, query, text, block_mask.unsqueeze(1)))
        return self.ffn_norm(text + self.ffn(text))


class DeformableLayer(nn.Module):
    """Deformable self-attention over all levels and a feed-forward block, post-norm."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.attention = DeformableAttention(
            config.d_model, config.encoder_heads, config.num_levels, config.encoder_points
        )
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.ffn = FeedForward(config.d_model, config.encoder_ffn_dim)
        self.ffn_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(
        self, image: Tensor, positions: Tensor, references: Tensor, mask: Tensor | None, shapes: SpatialShapes
    ) -> Tensor:
        """image and positions (B, S, C), references (B, S, L, 2), mask (B, S) True where there is image -> (B, S, C)."""
        image = self.attention_norm(
            image + self.attention(image + positions, references, image, mask, shapes)
        )
        return self.ffn_norm(image + self.ffn(image))
