"""GLIP's answer -> the candidates worth keeping. Every cell answers, so neighbours find the same thing."""

from __future__ import annotations

import torch
from torch import Tensor

from groundingml.inference.prompts import TextChunk
from groundingml.inference.scoring import Aggregation, Candidates, score_pairs
from groundingml.models.glip.box_coder import clip, decode
from groundingml.models.glip.config import GlipConfig
from groundingml.models.glip.nms import keep_best
from groundingml.models.glip.outputs import GlipOutput


def select_anchor_candidates(
    output: GlipOutput, row: int, chunk: TextChunk, thresholds: Tensor, config: GlipConfig
) -> Candidates:
    """The best boxes of one image and one chunk, chosen as GLIP's authors do.

    A cell is a candidate for a label whose score, the mean over its tokens, exceeds a small threshold. Then
    centerness comes in: the score becomes the geometric mean of both. The best of each level go on, and of
    those that overlap under one label the best stays.

    Args:
        thresholds: (K,) least final score, one for each label of the plan.
    """
    aggregation: Aggregation = "mean" if config.score_aggregation == "mean" else "max"
    pairs, label_of, number_of = score_pairs(output.logits[row], chunk, aggregation)
    centerness = output.centerness_logits[row].float().sigmoid().unsqueeze(-1)
    scores = (pairs.clamp(min=0) * centerness).sqrt()
    # What falls below a threshold could not have suppressed anything above it.
    wanted = (pairs > config.least_class_score) & (scores >= thresholds[label_of])
    cells, places = _best_of_each_level(scores.masked_fill(~wanted, -1.0), output.level_cells, config)

    height, width = output.image_sizes[row]
    boxes = decode(output.box_deltas[row, cells].float(), output.anchors_xyxy[cells])
    boxes = clip(boxes, height, width)
    kept = keep_best(boxes, scores[cells, places], label_of[places], config.nms_iou, config.max_detections)
    cells, places, boxes = cells[kept], places[kept], boxes[kept]
    boxes = boxes / boxes.new_tensor([width, height, width, height])
    boxes = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=-1)
    return Candidates(boxes, scores[cells, places], label_of[places], number_of[places])


def _best_of_each_level(
    scores: Tensor, level_cells: tuple[int, ...], config: GlipConfig
) -> tuple[Tensor, Tensor]:
    """Cells (N,) and columns (N,) of the highest scores (S, pairs) that are not negative."""
    found = []
    start = 0
    for level in scores.split(level_cells):
        values, flat = level.flatten().topk(min(config.candidates_per_level, level.numel()))
        flat = flat[values >= 0]
        found.append(torch.stack([start + flat // scores.shape[1], flat % scores.shape[1]]))
        start += len(level)
    cells, places = torch.cat(found, dim=1)
    return cells, places
