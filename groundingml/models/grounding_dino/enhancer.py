"""The feature enhancer: image tokens and text tokens are refined together, layer by layer.

Each layer lets image and text look at each other (fusion), then the text at itself within its phrases, then
the image at itself by deformable attention.
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
from groundingml.models.linear import Linear, batched_linear


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
        self.fusion = FusionLayer(
            config.d_model,
            config.d_model,
            config.fusion_dim,
            config.fusion_heads,
            drop_path=config.fusion_drop_path,
            layer_norm_eps=config.layer_norm_eps,
        )
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
    """Image and text attend to each other through one shared matrix of scores (GLIP, arXiv:2112.03857).

    The residual is added to the NORMED input, as in the original.

    There are thousands of image tokens and few text tokens, so nothing is projected on the image side:

    - with q = Wq x, a score q . k is x . (Wq^T k);
    - with weights p, Wo applied to the sum of p v is the sum of p (Wo v);
    - the image is pooled for the text before its projection Wv, not after.

    This is the same algebra, and a tenth of the work for a short prompt.
    """

    def __init__(
        self,
        image_channels: int,
        text_channels: int,
        width: int,
        heads: int,
        *,
        drop_path: float = 0.0,
        layer_scale: float = 1e-4,
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.image_norm = nn.LayerNorm(image_channels, eps=layer_norm_eps)
        self.text_norm = nn.LayerNorm(text_channels, eps=layer_norm_eps)
        self.image_query = Linear(image_channels, width)
        self.text_key = Linear(text_channels, width)
        self.image_value = Linear(image_channels, width)
        self.text_value = Linear(text_channels, width)
        self.image_output = Linear(width, image_channels)
        self.text_output = Linear(width, text_channels)
        self.image_scale = nn.Parameter(torch.full((image_channels,), layer_scale))
        self.text_scale = nn.Parameter(torch.full((text_channels,), layer_scale))
        self.drop_path = DropPath(drop_path)
        for layer in self.children():
            if isinstance(layer, Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """image (B, S, C), text (B, T, H), masks (B, S) and (B, T) True at real tokens -> the same shapes."""
        image, text = self.image_norm(image), self.text_norm(text)
        scores = self.bound(self._scores(image, text))

        to_text = scores.unflatten(-1, (self.heads, -1)).masked_fill(
            ~text_mask[:, None, None, :], float("-inf")
        )
        to_text = to_text.softmax(dim=-1).flatten(2)  # (B, S, M * T)
        image_change = batched_linear(to_text, self._values_for_image(text))

        to_image = (
            scores if image_mask is None else scores.masked_fill(~image_mask.unsqueeze(-1), float("-inf"))
        )
        pooled = to_image.softmax(dim=1).transpose(1, 2) @ image  # (B, M * T, C)
        text_change = self.text_scale * self.text_output(self._project_pooled(pooled))

        return image + self.drop_path(image_change), text + self.drop_path(text_change)

    def bound(self, scores: Tensor) -> Tensor:
        """The scores (B, S, M * T) kept in a range that the softmaxes can take."""
        return bounded(scores)

    def _scores(self, image: Tensor, text: Tensor) -> Tensor:
        """(B, S, M * T), all heads side by side."""
        key = self._heads(self.text_key(text))
        key = key * key.shape[-1] ** -0.5
        projection = self.image_query.weight.unflatten(0, (self.heads, -1))  # (M, D, C)
        keys = torch.einsum("bmtd,mdc->bmtc", key, projection).flatten(1, 2)
        constant = torch.einsum("bmtd,md->bmt", key, self.image_query.bias.unflatten(0, (self.heads, -1)))
        return batched_linear(image, keys, constant.flatten(1))

    def _values_for_image(self, text: Tensor) -> Tensor:
        """(B, C, M * T): the text's values behind the output projection, its bias and the layer scale."""
        value = self._heads(self.text_value(text))
        projection = self.image_output.weight.unflatten(1, (self.heads, -1))  # (C, M, D)
        values = torch.einsum("bmtd,cmd->bcmt", value, projection)
        # The weights of each head sum to 1, so each head may bring its share of the bias.
        values = values + (self.image_output.bias / self.heads)[:, None, None]
        return (self.image_scale[:, None, None] * values).flatten(2)

    def _project_pooled(self, pooled: Tensor) -> Tensor:
        """Image tokens pooled by each head, (B, M * T, C) -> their values (B, T, M * D)."""
        projection = self.image_value.weight.unflatten(0, (self.heads, -1))  # (M, D, C)
        values = torch.einsum("bmtc,mdc->btmd", pooled.unflatten(1, (self.heads, -1)), projection)
        return values.flatten(2) + self.image_value.bias

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, M * D) -> (B, M, N, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def bounded(scores: Tensor) -> Tensor:
    """Scores (B, ...) not more than 50000 below the highest of their sample.

    The original subtracts the maximum and clamps to -50000; a softmax does not see the shift. There the
    maximum is that of the whole batch, here of the sample, so that a result does not depend on the rest of
    its batch.
    """
    highest = scores.amax(dim=tuple(range(1, scores.ndim)), keepdim=True)
    return scores.clamp(min=highest - 50000.0)


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
        """image and positions (B, S, C), references (B, S, L, 2), mask (B, S) True in the image."""
        image = self.attention_norm(
            image + self.attention(image + positions, references, image, mask, shapes)
        )
        return self.ffn_norm(image + self.ffn(image))
