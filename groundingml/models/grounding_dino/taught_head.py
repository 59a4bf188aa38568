"""A second dense head for the names that people taught, beside the one that knows everyday names.

Small models forget quickly: a head trained on a few images of cells no longer finds cats. So what is taught
gets a pyramid, towers, boxes and classes of its own, which begin as copies of the first head's and read the
same backbone. A phrase is answered by one head alone: by this one if its nearest name was taught, else by the
first, exactly as before anything was taught. What one learns is therefore never paid with another name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from groundingml.models.nanodet import NanoDet, NanoDetConfig, NanoDetHead, pyramid

if TYPE_CHECKING:
    from groundingml.models.grounding_dino.dense_proposals import NameMemory

# The probability at which a name begins that is like nothing known.
_PRIOR = 0.01


@dataclass(frozen=True)
class DenseOutput:
    """What a dense head says at each of its S cells."""

    class_logits: Tensor
    """(B, S, N) of each taught name."""
    box_logits: Tensor
    """(B, S, 4 * bins) distributions of the distances to a box's sides, in strides."""
    boxes_xyxy: Tensor
    """(B, S, 4) their means as boxes, in pixels of the network's input, not clipped."""
    centres: Tensor
    """(S, 2) the cells' centres in pixels."""
    strides: Tensor
    """(S, 1) the cells' sizes in pixels."""


class TaughtHead(nn.Module):
    """Class logits and boxes for taught names, from the maps of the backbone's stages.

    Args:
        config: of the backbone.
        names: how many are taught, N.
        width: of a phrase's vector, H.
    """

    vectors: Tensor

    def __init__(self, config: NanoDetConfig, names: int, width: int) -> None:
        super().__init__()
        like = NanoDet(config)
        self.laterals = like.laterals
        self.towers = like.towers
        self.detector = NanoDetHead(replace(config, num_classes=names))
        self.register_buffer("vectors", torch.zeros(names, width))

    def forward(self, stages: Sequence[Tensor]) -> DenseOutput:
        """stages: the maps (B, C_s, H_s, W_s) that `NanoDet.stage_maps` returns."""
        maps = pyramid(stages, self.laterals, self.towers)
        box_logits = self.detector.box_logits(maps)
        centres, strides = self.detector.cells(maps)
        return DenseOutput(
            class_logits=self.detector.class_logits(maps),
            box_logits=box_logits,
            boxes_xyxy=self.detector.decode(box_logits, centres, strides),
            centres=centres,
            strides=strides,
        )

    def meaning(self, phrases: Tensor, memory: NameMemory) -> tuple[Tensor, Tensor, Tensor]:
        """Which phrases were taught: (B, T, H) of length 1 -> (B, T) bool, the nearest taught name, its
        weight.

        A phrase counts as taught if no name in ``memory`` is more similar than the nearest taught one. The
        weight, 0..1, falls where even that is not very similar, as it does in the memory.
        """
        similarity, name = (memory.centred(phrases) @ memory.centred(self.vectors).T).max(dim=-1)
        known = (memory.centred(phrases) @ memory.names.T).amax(dim=-1)
        taught = (similarity >= known - 1e-3) & (phrases.abs().sum(dim=-1) > 0)
        return taught, name, memory.confidence(similarity)


@torch.no_grad()
def begin_as_copy(
    head: TaughtHead, backbone: NanoDet, detector: NanoDetHead, vectors: Tensor, affinities: Tensor
) -> None:
    """Let a new head find what the first head finds.

    A name like known ones begins with the row of the class most like it; others with a small random row and
    a low probability.

    Args:
        vectors: (N, H) the names' phrase vectors. affinities: (N, classes) of the names to the first head's.
    """
    head.vectors.copy_(vectors)
    head.laterals.load_state_dict(backbone.laterals.state_dict())
    head.towers.load_state_dict(backbone.towers.state_dict())
    head.detector.boxes.load_state_dict(detector.boxes.state_dict())
    best, nearest = affinities.max(dim=-1)
    for ours, theirs in _class_layers(head.detector, detector):
        nn.init.normal_(ours.weight, std=0.01)
        nn.init.constant_(ours.bias, math.log(_PRIOR / (1 - _PRIOR)))
        known = best > 0.5
        ours.weight[known] = theirs.weight[nearest[known]]
        ours.bias[known] = theirs.bias[nearest[known]]


@torch.no_grad()
def keep_rows(head: TaughtHead, former: TaughtHead, names: Sequence[int]) -> None:
    """Put a former head's weights into a larger one, whose names ``names`` (one each) it knew."""
    rows = torch.tensor(names, dtype=torch.int64)
    head.laterals.load_state_dict(former.laterals.state_dict())
    head.towers.load_state_dict(former.towers.state_dict())
    head.detector.boxes.load_state_dict(former.detector.boxes.state_dict())
    for ours, theirs in _class_layers(head.detector, former.detector):
        ours.weight[rows] = theirs.weight
        ours.bias[rows] = theirs.bias
    head.vectors[rows] = former.vectors


def _class_layers(one: NanoDetHead, other: NanoDetHead) -> Iterator[tuple[nn.Linear, nn.Linear]]:
    for ours, theirs in zip(one.classes, other.classes, strict=True):
        assert isinstance(ours, nn.Linear)
        assert isinstance(theirs, nn.Linear)
        yield ours, theirs
