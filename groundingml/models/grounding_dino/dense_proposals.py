"""Proposals of a dense detector whose classes are text: what gives a small model something to begin with.

Where two-stage proposals learn boxes and text alignment from nothing, these read the maps of a backbone that was
trained as a detector (NanoDet). Its box head is kept; the rows of its classifier are replaced by a linear function
of a phrase's vector, which `recipes/nano` fits in closed form, so that "cat" gives about the row of the class cat.
What the enhancer and the decoder learn is added to these logits and boxes, beginning with zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.heads import BoxHead, ClassHead
from groundingml.models.grounding_dino.outputs import ImageFeatures, Proposals, TextFeatures
from groundingml.models.nanodet import NanoDetConfig, NanoDetHead

# Finite stand-ins for "no": a logit that no sum of residuals lifts, and what a cell that is no peak loses.
_IMPOSSIBLE = -100.0
_NOT_A_PEAK = 10.0


class DenseProposals(nn.Module):
    """Text-aligned logits and boxes at every cell of a detector's maps; of neighbouring cells only the peak counts.

    The peak filter stands for non-maximum suppression: a cell is kept where no cell of the 3x3 around it in its level
    has a higher best score.

    Raises:
        ValueError: a config whose backbone is no NanoDet, or that adds levels to the backbone's.
    """

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        backbone = config.backbone
        if not isinstance(backbone, NanoDetConfig):
            raise ValueError(
                'proposals="dense" read a detector\'s maps: the backbone must be a NanoDetConfig'
            )
        if config.num_levels != len(backbone.strides):
            raise ValueError(
                f'proposals="dense" need num_levels={len(backbone.strides)}, the levels of the backbone; '
                f"got {config.num_levels}"
            )
        self.detector = NanoDetHead(backbone, classes=False)
        text_width = config.text_config["hidden_size"]
        self.class_rows = nn.ModuleList(
            nn.Linear(text_width, backbone.channels + 1) for _ in backbone.strides
        )
        """For each level, a phrase's vector -> a row of the classifier and its bias."""
        self.projection = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.class_head = ClassHead(config)
        self.box_head = BoxHead(config.d_model)

    def forward(
        self,
        memory: Tensor,
        memory_mask: Tensor | None,
        image: ImageFeatures,
        text: Tensor,
        text_features: TextFeatures,
    ) -> Proposals:
        """The arguments are those of `TwoStageProposals.forward`."""
        phrases, is_word = phrase_vectors(text_features.hidden, text_features.block_mask)
        logits = torch.cat(
            [
                _class_logits(feature_map, rows(phrases))
                for feature_map, rows in zip(image.feature_maps, self.class_rows, strict=True)
            ],
            dim=1,
        )
        features = self.norm(self.projection(memory))
        change = self.class_head(features, text, text_features.mask)
        possible = (is_word & text_features.mask).unsqueeze(1)
        if memory_mask is not None:
            possible = possible & memory_mask.unsqueeze(-1)
        logits = (logits + change).masked_fill(~possible, _IMPOSSIBLE)

        best = logits.detach().amax(dim=-1)
        penalty = _NOT_A_PEAK * (~peaks(best, image.spatial_shapes)).to(best.dtype)
        logits = logits - penalty.unsqueeze(-1)
        return Proposals(
            logits=logits.masked_fill(~text_features.mask.unsqueeze(1), float("-inf")),
            boxes_logit=self._boxes_logit(image) + self.box_head(features),
            features=features,
            residual_logits=logits,
            selection_scores=best - penalty,
        )

    def _boxes_logit(self, image: ImageFeatures) -> Tensor:
        """The detector's boxes, clipped to the image: (B, S, 4) cxcywh relative to it, before the sigmoid."""
        assert image.sizes is not None
        corners = self.detector.boxes_xyxy(image.feature_maps) / image.sizes.repeat(1, 2).unsqueeze(1)
        low, high = corners.clamp(0.0, 1.0).chunk(2, dim=-1)
        return torch.logit(torch.cat([(low + high) / 2, high - low], dim=-1), eps=1e-4)


def phrase_vectors(hidden: Tensor, block_mask: Tensor) -> tuple[Tensor, Tensor]:
    """One vector for each phrase: the mean of its words' states, scaled to length 1.

    Args:
        hidden: (B, T, H) the text encoder's output.
        block_mask: (B, T, T) True where two tokens share a phrase; a phrase ends with its delimiter.

    Returns:
        (B, T, H) each token's phrase (zero at tokens that are no words), and (B, T) bool, True at words: tokens of a
        phrase other than its delimiter.
    """
    length = block_mask.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(diagonal=1)
    is_word = (block_mask & later).any(dim=-1)
    weights = (block_mask & is_word.unsqueeze(1) & is_word.unsqueeze(2)).to(hidden.dtype)
    return F.normalize(weights @ hidden, dim=-1), is_word


def peaks(scores: Tensor, spatial_shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Scores (B, S) -> (B, S) bool, True where no cell of the 3x3 around it in its level has a higher score."""
    sizes = [height * width for height, width in spatial_shapes]
    levels = []
    for level, (height, width) in zip(torch.split(scores, sizes, dim=1), spatial_shapes, strict=True):
        grid = level.view(-1, 1, height, width)
        levels.append((grid >= F.max_pool2d(grid, kernel_size=3, stride=1, padding=1)).flatten(1))
    return torch.cat(levels, dim=1)


def _class_logits(feature_map: Tensor, rows: Tensor) -> Tensor:
    """A map (B, C, H, W) and rows with their bias (B, T, C + 1) -> logits (B, H * W, T)."""
    weight, bias = rows[..., :-1], rows[..., -1]
    return (weight @ feature_map.flatten(2)).transpose(1, 2) + bias.unsqueeze(1)
