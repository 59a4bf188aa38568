"""What the network takes and returns.

Letters of the shapes: B batch, Q queries, N denoising queries, C channels, H hidden size of BERT, L feature
levels, S flattened image tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

_Features = TypeVar("_Features", "ImageFeatures", "TextFeatures")


@dataclass(frozen=True)
class ImageFeatures:
    """What `encode_image` makes of a batch of images: all that does not depend on the text."""

    tokens: Tensor
    """(B, S, C) projected feature maps, levels one after the other, rows before columns."""
    positions: Tensor
    """(B, S, C) sine embedding plus the level's learned embedding."""
    mask: Tensor | None
    """(B, S) bool, True where there is image; None when no image of the batch is padded."""
    spatial_shapes: tuple[tuple[int, int], ...]
    """(height, width) of each level."""
    valid_ratios: Tensor
    """(B, L, 2) the part of each level's width and height that is no padding."""
    centres: Tensor
    """(B, S, 2) centre of each token's cell, x and y relative to the unpadded image."""
    sizes: Tensor | None = None
    """(B, 2) width and height in pixels of the images without padding; kept only with `feature_maps`."""
    feature_maps: tuple[Tensor, ...] = ()
    """The backbone's maps (B, C_l, H_l, W_l); kept only for `proposals="dense"`, which read them."""

    @property
    def batch_size(self) -> int:
        return self.tokens.shape[0]

    def select(self, indices: Sequence[int] | Tensor) -> ImageFeatures:
        """The samples at `indices` in that order; an index may repeat (one image against several prompts)."""
        return _map_tensors(self, _selector(indices, self.tokens.device))

    def to(self, device: torch.device | str) -> ImageFeatures:
        """A copy on another device."""
        return _map_tensors(self, lambda tensor: tensor.to(device))

    def expand(self, batch_size: int) -> ImageFeatures:
        """A single image repeated without copying."""
        return _map_tensors(self, lambda tensor: tensor.expand(batch_size, *tensor.shape[1:]))


@dataclass(frozen=True)
class TextFeatures:
    """What `encode_text` makes of a batch of prompts: all that does not depend on the image."""

    tokens: Tensor
    """(B, T, C) BERT's output projected to the width of the image tokens."""
    mask: Tensor
    """(B, T) bool, True at real tokens."""
    block_mask: Tensor
    """(B, T, T) bool, True where two tokens belong to the same phrase (see `text.phrase_blocks`)."""
    positions: Tensor
    """(B, T, C) sine embedding of each token's place in its phrase."""
    hidden: Tensor
    """(B, T, H) BERT's output."""

    @property
    def batch_size(self) -> int:
        return self.tokens.shape[0]

    def select(self, indices: Sequence[int] | Tensor) -> TextFeatures:
        """The samples at `indices` in that order; an index may repeat."""
        return _map_tensors(self, _selector(indices, self.tokens.device))

    def to(self, device: torch.device | str) -> TextFeatures:
        """A copy on another device."""
        return _map_tensors(self, lambda tensor: tensor.to(device))

    def expand(self, batch_size: int) -> TextFeatures:
        """A single prompt repeated without copying."""
        return _map_tensors(self, lambda tensor: tensor.expand(batch_size, *tensor.shape[1:]))


@dataclass(frozen=True)
class Proposals:
    """What the encoder's output suggests at every image token; the best ones become the decoder's queries."""

    logits: Tensor
    """(B, S, T) class logits, -inf at text padding."""
    boxes_logit: Tensor
    """(B, S, 4) cxcywh before the sigmoid, which `box_head` may correct; +inf where nothing is proposed."""
    features: Tensor
    """(B, S, C) content for queries when the config says `query_content="proposals"`."""
    residual_logits: Tensor | None = None
    """(B, S, T) finite; those of the token that a query came from are added to its logits in every layer."""
    selection_scores: Tensor | None = None
    """(B, S) what top-k sorts by; None means the highest of a token's `logits`."""
    box_head: Callable[[Tensor], Tensor] | None = None
    """Features (..., C) -> what to add to `boxes_logit` (..., 4); asked at the selected tokens only."""


@dataclass(frozen=True)
class GroundingDinoOutput:
    """The network's answer for a batch."""

    logits: Tensor
    """(B, Q, max_text_len) before the sigmoid, one column for each text token; -inf past the text."""
    boxes_cxcywh: Tensor
    """(B, Q, 4) relative to the unpadded image, in 0..1."""
    topk_indices: Tensor
    """(B, Q) the image token that each query came from."""


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised ground truth that the decoder learns to restore (arXiv:2203.03605)."""

    content: Tensor
    """(B, N, C)."""
    reference_logits: Tensor
    """(B, N, 4) noised boxes, cxcywh before the sigmoid."""
    self_attention_mask: Tensor
    """(N + Q, N + Q) bool, True where a row may NOT attend to a column."""


@dataclass(frozen=True)
class TrainingOutput:
    """Everything that a loss is computed from. N is 0 without denoising queries, which come first."""

    decoder_logits: Tensor
    """(layers, B, N + Q, max_text_len), -inf past the text."""
    decoder_boxes_cxcywh: Tensor
    """(layers, B, N + Q, 4); gradients reach the layer before through the reference (look forward twice)."""
    encoder_logits: Tensor
    """(B, Q, max_text_len) of the selected proposals, -inf past the text."""
    encoder_boxes_cxcywh: Tensor
    """(B, Q, 4) of the selected proposals."""
    topk_indices: Tensor
    """(B, Q)."""


def _selector(indices: Sequence[int] | Tensor, device: torch.device) -> Callable[[Tensor], Tensor]:
    index = torch.as_tensor(indices, dtype=torch.long, device=device)
    return lambda tensor: tensor.index_select(0, index)


def _map_tensors(features: _Features, function: Callable[[Tensor], Tensor]) -> _Features:
    """A copy with every tensor replaced by the function of it."""
    changes: dict[str, Any] = {}
    for field in fields(features):
        value = getattr(features, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = function(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Tensor):
            changes[field.name] = tuple(function(tensor) for tensor in value)
    return replace(features, **changes)
