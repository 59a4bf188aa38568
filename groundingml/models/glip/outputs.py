"""What GLIP takes and returns.

Letters of the shapes: B batch, C channels, H hidden size of BERT, S cells of all levels together, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GlipImageFeatures:
    """What `encode_image` makes of a batch of images: all that does not depend on the text."""

    maps: tuple[Tensor, ...]
    """(B, C, H_l, W_l) of each level."""
    image_sizes: tuple[tuple[int, int], ...]
    """B pairs (height, width) in pixels, without padding."""

    @property
    def batch_size(self) -> int:
        return self.maps[0].shape[0]

    def expand(self, batch_size: int) -> GlipImageFeatures:
        """A single image repeated without copying."""
        maps = tuple(x.expand(batch_size, *x.shape[1:]) for x in self.maps)
        return GlipImageFeatures(maps, self.image_sizes * batch_size)


@dataclass(frozen=True)
class GlipTextFeatures:
    """What `encode_text` makes of a batch of captions: all that does not depend on the image."""

    hidden: Tensor
    """(B, T, H) BERT's output."""
    mask: Tensor
    """(B, T) bool, True at real tokens."""

    @property
    def batch_size(self) -> int:
        return self.hidden.shape[0]

    def expand(self, batch_size: int) -> GlipTextFeatures:
        """A single caption repeated without copying."""
        return GlipTextFeatures(*(x.expand(batch_size, *x.shape[1:]) for x in (self.hidden, self.mask)))


@dataclass(frozen=True)
class GlipOutput:
    """The network's answer for a batch: one anchor in each cell, levels one after the other."""

    logits: Tensor
    """(B, S, T) before the sigmoid, one column for each token; -inf at text padding."""
    box_deltas: Tensor
    """(B, S, 4) what `box_coder.decode` applies to the anchors."""
    centerness_logits: Tensor
    """(B, S) before the sigmoid."""
    anchors_xyxy: Tensor
    """(S, 4) pixels."""
    level_cells: tuple[int, ...]
    """How many of the S cells each level has."""
    image_sizes: tuple[tuple[int, int], ...]
    """B pairs (height, width) in pixels, without padding."""
