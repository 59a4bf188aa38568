"""Losses at every cell, for heads that propose densely: many cells learn from each box, so few images
suffice.

Cells are assigned by task alignment (TOOD, arXiv:2108.07755): of the cells inside a box those learn it that
already score and fit it best. The losses are those of Generalized Focal Loss (arXiv:2006.04388), with which
NanoDet was trained: a class's score is to be the alignment, a side's distance a distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from groundingml.models.grounding_dino.taught_head import DenseOutput
from groundingml.training.boxes import generalized_iou


@dataclass(frozen=True)
class DenseLossConfig:
    """Weights of the losses, and how cells are assigned to boxes.

    candidates: cells that learn a box, at most. The alignment of a cell with a box is score^score_power *
    IoU^iou_power; the best cell's goal is its IoU, the others' less in proportion, so that one of them wins.
    """

    quality: float = 1.0
    giou: float = 2.0
    distribution: float = 0.25
    candidates: int = 9
    score_power: float = 0.5
    iou_power: float = 4.0


@dataclass(frozen=True)
class Assignment:
    """P cells that learn boxes: cells and boxes (P,) int64, goals (P,) the score that each is to have."""

    cells: Tensor
    boxes: Tensor
    goals: Tensor


@torch.no_grad()
def assign_cells(
    scores: Tensor, boxes_xyxy: Tensor, centres: Tensor, goal_xyxy: Tensor, config: DenseLossConfig
) -> Assignment:
    """Which cells learn which box of one image.

    scores (S, N): of each box's own label at each cell; boxes_xyxy (S, 4) as predicted; centres (S, 2);
    goal_xyxy (N, 4). A cell that fits several boxes learns the one it overlaps most.
    """
    overlap = pairwise_iou(boxes_xyxy, goal_xyxy)
    low, high = goal_xyxy[None, :, :2], goal_xyxy[None, :, 2:]
    inside = ((centres[:, None] > low) & (centres[:, None] < high)).all(dim=-1)
    alignment = scores.clamp(min=1e-4).pow(config.score_power) * overlap.pow(config.iou_power)
    alignment = (alignment + 1e-9) * inside  # a cell inside a box may learn it even without any overlap
    best, cells = alignment.topk(min(config.candidates, len(alignment)), dim=0)
    chosen = torch.zeros_like(inside).scatter_(0, cells, best > 0)
    learns = chosen.any(dim=1).nonzero().flatten()
    boxes = torch.where(chosen, overlap, -1.0)[learns].argmax(dim=1)
    own, iou = alignment[learns, boxes], overlap[learns, boxes]
    highest = torch.zeros(len(goal_xyxy), device=own.device).scatter_reduce(0, boxes, own, "amax")
    best_iou = torch.zeros(len(goal_xyxy), device=own.device).scatter_reduce(0, boxes, iou, "amax")
    goals = own / highest[boxes].clamp(min=1e-12) * best_iou[boxes]
    return Assignment(learns, boxes, goals)


def dense_losses(
    output: DenseOutput,
    image: int,
    columns: Tensor,
    goal_xyxy: Tensor,
    phrase_ids: Tensor,
    weights: Tensor,
    size: Tensor,
    config: DenseLossConfig,
) -> dict[str, Tensor]:
    """The three weighted losses of one image, summed over its cells, not divided by anything.

    columns (K,): the taught name of each of the prompt's K phrases; goal_xyxy (N, 4) in pixels; phrase_ids
    (N,) among the K; weights (N,); size (2,): the image's width and height, beyond which cells do not count.
    Names that are not in the prompt are neither right nor wrong.
    """
    in_image = (output.centres < size).all(dim=-1)
    logits = output.class_logits[image][in_image][:, columns].float()  # (S, K)
    box_logits = output.box_logits[image][in_image].float()
    boxes, centres = output.boxes_xyxy[image][in_image].float(), output.centres[in_image]
    goals = torch.zeros_like(logits)
    importance = torch.ones_like(logits)
    giou = distribution = logits.sum() * 0.0
    if len(goal_xyxy):
        found = assign_cells(
            logits.detach().sigmoid()[:, phrase_ids], boxes.detach(), centres, goal_xyxy, config
        )
        phrase = phrase_ids[found.boxes]
        goals[found.cells, phrase] = found.goals
        importance[found.cells, phrase] = weights[found.boxes]
        weight, goal = found.goals * weights[found.boxes], goal_xyxy[found.boxes]
        giou = ((1 - generalized_iou(boxes[found.cells], goal)) * weight).sum()
        strides = output.strides[in_image][found.cells]
        distances = sides(centres[found.cells], goal) / strides
        distribution = (side_loss(box_logits[found.cells], distances) * weight).sum()
    quality = (quality_focal_loss(logits, goals) * importance).sum()
    return {
        "quality": config.quality * quality,
        "giou": config.giou * giou,
        "distribution": config.distribution * distribution,
    }


def quality_focal_loss(logits: Tensor, goals: Tensor) -> Tensor:
    """|goal - p|^2 times binary cross-entropy, of each element: logits, goals -> same shape."""
    distance = (goals - logits.detach().sigmoid()).abs()
    return F.binary_cross_entropy_with_logits(logits, goals, reduction="none") * distance.pow(2)


def side_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy of each side's distribution with the two bins around its distance, mean of the four.

    logits (P, 4 * bins), distances (P, 4) in strides -> (P,).
    """
    logits = logits.unflatten(-1, (4, -1)).log_softmax(dim=-1)
    distances = distances.clamp(0, logits.shape[-1] - 1.01)
    lower = distances.floor().long()
    share = distances - lower
    below = logits.gather(2, lower.unsqueeze(-1)).squeeze(-1)
    above = logits.gather(2, lower.unsqueeze(-1) + 1).squeeze(-1)
    return -(below * (1 - share) + above * share).mean(dim=-1)


def sides(centres: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Distances (P, 4) from centres (P, 2) to the left, top, right and bottom sides of boxes (P, 4)."""
    return torch.cat([centres - boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - centres], dim=-1)


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """(A, 4) and (B, 4) xyxy -> (A, B) intersection over union; 0 for boxes without area."""
    low = torch.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    high = torch.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    area_a = (boxes_a[:, 2:] - boxes_a[:, :2]).clamp(min=0).prod(dim=-1)
    area_b = (boxes_b[:, 2:] - boxes_b[:, :2]).clamp(min=0).prod(dim=-1)
    return intersection / (area_a[:, None] + area_b[None, :] - intersection).clamp(min=1e-6)
