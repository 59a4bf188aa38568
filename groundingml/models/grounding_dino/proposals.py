"""Language-guided query selection: every image token proposes a box, the best fits become queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.heads import BoxHead, ClassHead
from groundingml.models.grounding_dino.outputs import ImageFeatures, Proposals, TextFeatures
from groundingml.models.linear import Linear
from groundingml.models.tracing import at_most


class TwoStageProposals(nn.Module):
    """A box around every cell, sized by its level, corrected by a head (two-stage of arXiv:2010.04159)."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.projection = Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.class_head = ClassHead(config)
        self.box_head = BoxHead(config.d_model)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(
        self,
        memory: Tensor,
        memory_mask: Tensor | None,
        image: ImageFeatures,
        text: Tensor,
        text_features: TextFeatures,
    ) -> Proposals:
        """Propose a box for every image token.

        Args:
            memory: (B, S, C) the enhancer's image tokens.
            memory_mask: (B, S) True where there is image, or None.
            image: what `encode_image` returned, for the geometry.
            text: (B, T, C) the enhancer's text tokens.
            text_features: what `encode_text` returned, for the masks.
        """
        anchors, valid = cell_boxes(image)
        if memory_mask is not None:
            valid = valid & memory_mask
        # Tokens in padding or at the very edge all become the same, weak proposal.
        features = self.norm(self.projection(memory.masked_fill(~valid.unsqueeze(-1), 0.0)))
        return Proposals(
            logits=self.class_head(features, text, text_features.mask),
            boxes_logit=torch.logit(anchors).masked_fill(~valid.unsqueeze(-1), float("inf")),
            features=features,
            box_head=self.box_head,
        )


def cell_boxes(image: ImageFeatures) -> tuple[Tensor, Tensor]:
    """Squares of side 0.05 * 2^level around the cells' centres, (B, S, 4) cxcywh, and if usable, (B, S).

    Usable means that all four numbers lie between 0.01 and 0.99.
    """
    sides = [
        torch.full((height * width, 2), 0.05 * 2.0**level, device=image.centres.device)
        for level, (height, width) in enumerate(image.spatial_shapes)
    ]
    boxes = torch.cat([image.centres, torch.cat(sides).expand_as(image.centres)], dim=-1)
    return boxes, ((boxes > 0.01) & (boxes < 0.99)).all(dim=-1)


def select_queries(proposals: Proposals, num_queries: int) -> Tensor:
    """Indices (B, Q) of the best proposals, best first; Q is `num_queries` or S, whichever is less."""
    scores = proposals.selection_scores
    if scores is None:
        scores = proposals.logits.amax(dim=-1)
    return scores.topk(at_most(num_queries, scores, 1), dim=1).indices


def selected_boxes(proposals: Proposals, indices: Tensor) -> Tensor:
    """The boxes, corrected, of the proposals at indices (B, Q): (B, Q, 4) cxcywh before the sigmoid."""
    boxes_logit = gather_tokens(proposals.boxes_logit, indices)
    if proposals.box_head is None:
        return boxes_logit
    return boxes_logit + proposals.box_head(gather_tokens(proposals.features, indices))


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """x (B, S, C), indices (B, Q) -> (B, Q, C)."""
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
