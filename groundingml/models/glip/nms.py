"""Non-maximum suppression within each label, as GLIP's: the last pixel of a box counts as inside."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_best(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, max_iou: float, most: int) -> Tensor:
    """Indices of the boxes to keep, best first.

    A box goes when a better one of its label overlaps it by more than ``max_iou``. The search ends with the
    ``most``-th box kept, so it takes that many rounds, however many boxes there are.

    Args:
        boxes_xyxy: (N, 4) pixels; scores, labels: (N,). All are looked at on the CPU: a round is short.
    """
    order = scores.cpu().argsort(descending=True, stable=True)
    boxes, labels = boxes_xyxy.cpu()[order], labels.cpu()[order]
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=-1)
    alive = torch.ones(len(order), dtype=torch.bool)
    kept: list[int] = []
    while len(kept) < most and bool(alive.any()):
        best = int(alive.to(torch.uint8).argmax())
        kept.append(best)
        sides = torch.minimum(boxes[best, 2:], boxes[:, 2:]) - torch.maximum(boxes[best, :2], boxes[:, :2])
        shared = (sides + 1).clamp(min=0).prod(dim=-1)
        alive &= (labels != labels[best]) | (shared <= max_iou * (areas[best] + areas - shared))
        alive[best] = False
    return order[torch.tensor(kept, dtype=torch.long)].to(scores.device)
