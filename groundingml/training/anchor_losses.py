"""GLIP's training losses: token focal, GIoU and centerness, on anchors that ATSS assigns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from groundingml.models.glip.box_coder import decode
from groundingml.models.glip.outputs import GlipOutput
from groundingml.training.atss import Assignment, assign, centerness
from groundingml.training.boxes import cxcywh_to_xyxy, generalized_iou
from groundingml.training.losses import LossConfig, sigmoid_focal_loss
from groundingml.training.targets import Target


@dataclass(frozen=True)
class AnchorTargets:
    """What the anchors of one image learn. P positive anchors.

    boxes_xyxy: (P, 4) pixels, the last one inside; centerness, weights: (P,).
    """

    assignment: Assignment
    boxes_xyxy: Tensor
    centerness: Tensor
    weights: Tensor


def anchor_targets(
    target: Target, size: tuple[int, int], anchors_xyxy: Tensor, level_cells: Sequence[int]
) -> AnchorTargets:
    """target: of one image of ``size`` (height, width) in pixels, without padding; anchors_xyxy (S, 4)."""
    height, width = size
    scale = target.boxes_cxcywh.new_tensor([width, height, width, height])
    boxes = cxcywh_to_xyxy(target.boxes_cxcywh) * scale
    boxes = boxes - boxes.new_tensor([0.0, 0.0, 1.0, 1.0])  # the last pixel, not the edge behind it
    assignment = assign(anchors_xyxy, level_cells, boxes)
    learned = boxes[assignment.boxes]
    return AnchorTargets(
        assignment,
        learned,
        centerness(anchors_xyxy[assignment.cells], learned),
        target.weights[assignment.boxes].float(),
    )


def anchor_losses(
    output: GlipOutput,
    targets: Sequence[Target],
    text_mask: Tensor,
    config: LossConfig,
    positives: float | None = None,
    total_centerness: float | None = None,
) -> dict[str, Tensor]:
    """The weighted losses of a batch, {"focal", "giou", "centerness"}; their sum is what is minimised.

    Focal loss over all anchors and the real tokens, binary, and the centerness' cross-entropy are divided by
    the number of positive anchors. Each positive's GIoU loss counts by its centerness and is divided by the
    sum of those. A box's weight scales all that its anchors pay.

    Args:
        text_mask: (B, T) bool, True at real tokens.
        positives, total_centerness: of all images of the step, where this is a part of it.
    """
    learned = [
        anchor_targets(target, size, output.anchors_xyxy, output.level_cells)
        for target, size in zip(targets, output.image_sizes, strict=True)
    ]
    if positives is None:
        positives = float(sum(len(one.weights) for one in learned))
    if total_centerness is None:
        total_centerness = float(sum(one.centerness.sum() for one in learned))
    positives = max(positives, 1.0)
    total_centerness = max(total_centerness, 1e-6)

    logits = output.logits.float()
    positive = torch.zeros_like(logits)
    weight = torch.ones(logits.shape[:2], device=logits.device)
    for row, (target, one) in enumerate(zip(targets, learned, strict=True)):
        tokens = target.positive_map[one.assignment.boxes, : logits.shape[2]]
        positive[row, one.assignment.cells] = tokens.float()
        weight[row, one.assignment.cells] = one.weights
    mask = text_mask[:, None, :]
    # Padded columns are -inf: replaced before the loss, or their gradients would be NaN.
    focal = sigmoid_focal_loss(logits.masked_fill(~mask, 0.0), positive, config.alpha, config.gamma)
    focal = (focal * mask * weight[..., None]).sum() / positives

    giou, central = logits.new_zeros(()), logits.new_zeros(())
    for row, one in enumerate(learned):
        cells = one.assignment.cells
        found = decode(output.box_deltas[row, cells].float(), output.anchors_xyxy[cells].float())
        overlap = generalized_iou(found, one.boxes_xyxy.float())
        giou = giou + ((1 - overlap) * one.centerness * one.weights).sum() / total_centerness
        said = output.centerness_logits[row, cells].float()
        cross_entropy = F.binary_cross_entropy_with_logits(said, one.centerness, reduction="none")
        central = central + (cross_entropy * one.weights).sum() / positives
    return {"focal": config.focal * focal, "giou": config.giou * giou, "centerness": central}
