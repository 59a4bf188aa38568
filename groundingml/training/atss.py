"""Which anchors learn which box: adaptive training sample selection (ATSS, arXiv:1912.02424), as GLIP has it.

Pixels are counted as in GLIP's box coder: a box from pixel 3 to pixel 5 is 3 wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES_PER_LEVEL = 9
_LEAST_DISTANCE = 0.01
"""In pixels: how far inside of a box the centre of a positive anchor lies at least."""


@dataclass(frozen=True)
class Assignment:
    """The positive anchors of one image.

    cells: (P,) int64, their indices. boxes: (P,) int64, which of the image's boxes each learns.
    """

    cells: Tensor
    boxes: Tensor


@torch.no_grad()
def assign(
    anchors_xyxy: Tensor,
    level_cells: Sequence[int],
    boxes_xyxy: Tensor,
    per_level: int = CANDIDATES_PER_LEVEL,
) -> Assignment:
    """Assign the anchors of one image.

    For each box the ``per_level`` anchors of each level whose centres are nearest are candidates. Those whose
    IoU with the box reaches the candidates' mean plus one standard deviation, and whose centre lies in the
    box, are positive. An anchor that several boxes want learns the one that it overlaps most.

    Args:
        anchors_xyxy: (S, 4) pixels, levels one after the other; level_cells: how many of the S each level
            has.
        boxes_xyxy: (N, 4) pixels, the last one inside.
    """
    count = len(boxes_xyxy)
    if count == 0:
        none = torch.zeros(0, dtype=torch.int64, device=anchors_xyxy.device)
        return Assignment(none, none)
    boxes = boxes_xyxy.float()
    anchors = anchors_xyxy.float()
    overlaps = pixel_iou(anchors, boxes)  # (S, N)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    distances = torch.cdist(
        centres, (boxes[:, :2] + boxes[:, 2:]) / 2, compute_mode="donot_use_mm_for_euclid_dist"
    )

    nearest, start = [], 0
    for level in distances.split(list(level_cells)):
        nearest.append(start + level.topk(min(per_level, len(level)), dim=0, largest=False).indices)
        start += len(level)
    candidates = torch.cat(nearest)  # (candidates, N)
    candidate_overlaps = overlaps.gather(0, candidates)
    least = candidate_overlaps.mean(dim=0) + candidate_overlaps.std(dim=0)
    to_sides = torch.cat(
        [centres[candidates] - boxes[:, :2], boxes[:, 2:] - centres[candidates]], dim=-1
    )  # (candidates, N, 4)
    positive = (candidate_overlaps >= least) & (to_sides.amin(dim=-1) > _LEAST_DISTANCE)

    claims = torch.full_like(overlaps, -1.0)
    column = torch.arange(count, device=boxes.device).expand_as(candidates)
    claims[candidates[positive], column[positive]] = candidate_overlaps[positive]
    best, box = claims.max(dim=1)
    cells = (best >= 0).nonzero().squeeze(1)
    return Assignment(cells, box[cells])


def centerness(anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """(P, 4) anchors and the boxes that they learn -> (P,) in 0..1: 1 where both have one centre."""
    centre = (anchors_xyxy[:, :2] + anchors_xyxy[:, 2:]) / 2
    low, high = centre - boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - centre
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(dim=-1).clamp(min=0).sqrt()


def pixel_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """(A, 4) and (B, 4) boxes in pixels, the last one inside -> (A, B) intersection over union."""
    low = torch.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = torch.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    shared = (high - low + 1).clamp(min=0).prod(dim=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=-1) for boxes in (a_xyxy, b_xyxy)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)
