"""The cross-modality decoder: queries look at each other, the text and the image, and refine their boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groundingml.models.grounding_dino.attention import DeformableAttention, FeedForward, MultiHeadAttention
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.heads import Mlp, PredictionHeads
from groundingml.models.grounding_dino.outputs import ImageFeatures
from groundingml.models.grounding_dino.positions import SpatialShapes, box_embedding, inverse_sigmoid


class Decoder(nn.Module):
    """The stack of decoder layers with iterative box refinement."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.eps = config.decoder_eps
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.query_position = Mlp(2 * config.d_model, config.d_model, config.d_model, layers=2)
        self.gradient_checkpointing = False

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        memory: Tensor,
        image: ImageFeatures,
        text: Tensor,
        text_mask: Tensor,
        heads: PredictionHeads,
        self_attention_mask: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run all layers.

        Args:
            queries: (B, Q, C) content.
            references: (B, Q, 4) cxcywh in 0..1, relative to the unpadded image.
            memory: (B, S, C) the enhancer's image tokens.
            image: what `encode_image` returned.
            text: (B, T, C) the enhancer's text tokens.
            text_mask: (B, T) True at real tokens.
            heads: whose box heads refine the references.
            self_attention_mask: (Q, Q) True where a row may attend to a column; None means everywhere.

        Returns:
            For each layer its normed output (B, Q, C), and the references (B, Q, 4) that it began with. These
            carry gradients to the layer before, which the layer itself does not see.
        """
        outputs: list[Tensor] = []
        begun_with = [references]
        scale = torch.cat([image.valid_ratios, image.valid_ratios], dim=-1).unsqueeze(1)  # (B, 1, L, 4)
        for number, layer in enumerate(self.layers):
            level_references = references.unsqueeze(2) * scale  # (B, Q, L, 4), of the padded maps
            embedding = box_embedding(level_references[:, :, 0], self.d_model // 2).to(queries.dtype)
            positions = self.query_position(embedding)
            arguments = (
                queries, positions, level_references, memory, image.mask, image.spatial_shapes,
                text, text_mask, self_attention_mask,
            )  # fmt: skip
            if self.gradient_checkpointing and torch.is_grad_enabled():
                queries = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                queries = layer(*arguments)
            outputs.append(self.norm(queries))
            if number + 1 < len(self.layers):
                # The refinement reads the state before the norm, the prediction heads read it after.
                refined = heads.box_head(number)(queries) + inverse_sigmoid(references, self.eps)
                begun_with.append(refined.sigmoid())
                references = begun_with[-1].detach()
        return outputs, begun_with


class DecoderLayer(nn.Module):
    """Self-attention, attention to the text, deformable attention to the image, feed-forward; post-norm."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        channels, heads, eps = config.d_model, config.decoder_heads, config.layer_norm_eps
        self.self_attention = MultiHeadAttention(channels, heads)
        self.self_attention_norm = nn.LayerNorm(channels, eps=eps)
        self.text_attention = MultiHeadAttention(channels, heads)
        self.text_attention_norm = nn.LayerNorm(channels, eps=eps)
        self.image_attention = DeformableAttention(channels, heads, config.num_levels, config.decoder_points)
        self.image_attention_norm = nn.LayerNorm(channels, eps=eps)
        self.ffn = FeedForward(channels, config.decoder_ffn_dim)
        self.ffn_norm = nn.LayerNorm(channels, eps=eps)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        shapes: SpatialShapes,
        text: Tensor,
        text_mask: Tensor,
        self_attention_mask: Tensor | None,
    ) -> Tensor:
        """queries and positions (B, Q, C), references (B, Q, L, 4), the rest as above -> (B, Q, C)."""
        x = queries
        located = x + positions
        x = self.self_attention_norm(x + self.self_attention(located, located, x, self_attention_mask))
        x = self.text_attention_norm(
            x + self.text_attention(x + positions, text, text, text_mask[:, None, None, :])
        )
        x = self.image_attention_norm(
            x + self.image_attention(x + positions, references, memory, memory_mask, shapes)
        )
        return self.ffn_norm(x + self.ffn(x))
