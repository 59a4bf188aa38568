"""Candidates of one image -> its detections: aliases merged, negative prompts heeded, the best of them."""

from __future__ import annotations

import torch

from groundingml.inference.detections import Detections
from groundingml.inference.merging import keep_after_merge, not_suppressed
from groundingml.inference.prompts import PromptPlan
from groundingml.inference.scoring import Candidates

MOST_DETECTIONS = 300
"""At most so many boxes for an image, the best ones (as in MM-Grounding-DINO's evaluation)."""

MERGE_IOU = 0.7
"""Boxes of one label found by different prompts count as one object from this overlap on."""

NEGATIVE_IOU = 0.5
"""A box is dropped when a better one of a negative prompt overlaps it by so much."""

_LEAST_SIDE = 0.5  # pixels; thinner boxes hold nothing


def to_detections(
    candidates: Candidates, size: tuple[int, int], plan: PromptPlan, most: int, merge_iou: float
) -> Detections:
    """The detections of an image of ``size`` (height, width), the best ``most``."""
    height, width = size
    x, y, w, h = candidates.boxes_cxcywh.unbind(-1)
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
    # The embedded boxes are relative to the image without padding, so its upright size is all that is needed.
    boxes = boxes.clamp(0, 1) * boxes.new_tensor([width, height, width, height])
    keep = keep_after_merge(
        boxes, candidates.scores, candidates.label_ids, candidates.prompt_numbers, merge_iou
    )
    sides = boxes[keep, 2:] - boxes[keep, :2]
    keep = keep[(sides >= _LEAST_SIDE).all(-1)]
    keep = keep[
        not_suppressed(
            boxes[keep], candidates.scores[keep], candidates.label_ids[keep], plan.negatives, NEGATIVE_IOU
        )
    ][:most]
    label_ids = candidates.label_ids[keep].cpu().numpy()
    return Detections(
        boxes_xyxy=boxes[keep].cpu().numpy(),
        scores=candidates.scores[keep].cpu().numpy(),
        labels=[plan.labels[number].name for number in label_ids],
        label_ids=label_ids,
        image_size=(height, width),
        label_names=tuple(label.name for label in plan.asked),
    )
