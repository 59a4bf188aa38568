"""Box arithmetic: conversions and generalised IoU, differentiable, on normalised or pixel boxes."""

import torch
from torch import Tensor

_EPSILON = 1e-6  # keeps empty boxes from dividing by zero; the value of mmdet's bbox_overlaps


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre, width, height -> (..., 4) corners."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centre, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """log(x / (1 - x)) with both x and 1 - x kept >= eps, as in DETR's decoders."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def generalized_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of boxes in xyxy, broadcast over leading dimensions.

    boxes_a, boxes_b: (..., 4), broadcastable -> (...), in [-1, 1]. Pairwise: ``generalized_iou(a[:, None],
    b[None])``.
    """
    intersection = _area(
        torch.maximum(boxes_a[..., :2], boxes_b[..., :2]), torch.minimum(boxes_a[..., 2:], boxes_b[..., 2:])
    )
    area_a, area_b = _area(boxes_a[..., :2], boxes_a[..., 2:]), _area(boxes_b[..., :2], boxes_b[..., 2:])
    union = (area_a + area_b - intersection).clamp(min=_EPSILON)
    hull = _area(
        torch.minimum(boxes_a[..., :2], boxes_b[..., :2]), torch.maximum(boxes_a[..., 2:], boxes_b[..., 2:])
    ).clamp(min=_EPSILON)
    return intersection / union - (hull - union) / hull


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=-1)
