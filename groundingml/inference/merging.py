"""One object found several times under one label becomes one detection; one that a negative prompt fits
better, none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def box_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Intersection over union of (N, 4) with (M, 4) boxes: (N, M). Boxes without area give 0."""
    low = torch.maximum(boxes_xyxy[:, None, :2], others_xyxy[None, :, :2])
    high = torch.minimum(boxes_xyxy[:, None, 2:], others_xyxy[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=0).prod(-1)
    other_area = (others_xyxy[:, 2:] - others_xyxy[:, :2]).clamp(min=0).prod(-1)
    union = area[:, None] + other_area[None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def keep_after_merge(
    boxes_xyxy: Tensor, scores: Tensor, label_ids: Tensor, prompt_numbers: Tensor, max_iou: float
) -> Tensor:
    """Indices to keep, best score first.

    A box is dropped when a better one of the *same label* found by a *different prompt* (an alias, perhaps
    in another chunk) overlaps it by ``max_iou`` or more. Boxes that one prompt found stay as the network
    gave them: it was trained to find each object once, and suppression would lose neighbours in a crowd.

    Args:
        boxes_xyxy: (N, 4); scores, label_ids, prompt_numbers: (N,).
    """
    order = scores.argsort(descending=True, stable=True)
    contested = _labels_with_several_prompts(label_ids, prompt_numbers)
    if not contested:
        return order
    kept = torch.ones(len(order), dtype=torch.bool, device=order.device)  # by rank
    labels, prompts = label_ids[order], prompt_numbers[order]
    for label in contested:
        ranks = (labels == label).nonzero().flatten()
        boxes = boxes_xyxy[order[ranks]]
        rivals = (box_iou(boxes, boxes) >= max_iou) & (prompts[ranks][:, None] != prompts[ranks][None, :])
        rivals = rivals.triu(1).cpu()  # row: the better box
        alive = torch.ones(len(ranks), dtype=torch.bool)
        for rank in range(len(ranks)):
            if alive[rank]:
                alive &= ~rivals[rank]
        kept[ranks] = alive.to(kept.device)
    return order[kept]


def not_suppressed(
    boxes_xyxy: Tensor,
    scores: Tensor,
    label_ids: Tensor,
    negatives: Mapping[int, tuple[int, ...]],
    iou: float,
) -> Tensor:
    """Which boxes stay, (N,) bool: those of no negative label that no better box of a negative label overlaps
    by ``iou`` or more.

    Args:
        boxes_xyxy: (N, 4); scores, label_ids: (N,).
        negatives: a negative label -> the labels whose boxes it drops.
    """
    stays = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    for negative, suppressed in negatives.items():
        against = label_ids == negative
        concerned = torch.isin(label_ids, torch.tensor(suppressed, device=label_ids.device))
        better = scores[against][None, :] > scores[:, None]
        covered = box_iou(boxes_xyxy, boxes_xyxy[against]) >= iou
        stays &= ~against & ~(concerned & (better & covered).any(1))
    return stays


def _labels_with_several_prompts(label_ids: Tensor, prompt_numbers: Tensor) -> list[int]:
    prompts: dict[int, set[int]] = {}
    for label, prompt in zip(label_ids.tolist(), prompt_numbers.tolist(), strict=True):
        prompts.setdefault(label, set()).add(prompt)
    return [label for label, found in prompts.items() if len(found) > 1]
