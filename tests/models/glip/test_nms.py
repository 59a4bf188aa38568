from __future__ import annotations

import torch
from torch import Tensor

from groundingml.models.glip.nms import keep_best


def keep_slowly(boxes: Tensor, scores: Tensor, labels: Tensor, max_iou: float, most: int) -> list[int]:
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        overlaps = []
        for j in kept:
            low, high = torch.maximum(boxes[i, :2], boxes[j, :2]), torch.minimum(boxes[i, 2:], boxes[j, 2:])
            shared = float((high - low + 1).clamp(min=0).prod())
            areas = [float((boxes[k, 2:] - boxes[k, :2] + 1).prod()) for k in (i, j)]
            overlaps.append(labels[i] == labels[j] and shared / (sum(areas) - shared) > max_iou)
        if not any(overlaps):
            kept.append(i)
    return kept[:most]


def test_equals_the_slow_way():
    torch.manual_seed(0)
    low = torch.rand(100, 2) * 10
    boxes = torch.cat([low, low + 20 + torch.rand(100, 2) * 10], dim=1)
    scores, labels = torch.rand(100), torch.randint(3, (100,))
    for most in (5, 1000):
        found = keep_best(boxes, scores, labels, 0.6, most).tolist()
        assert found == keep_slowly(boxes, scores, labels, 0.6, most)
        assert most == 5 or 6 < len(found) < 90


def test_the_last_pixel_counts():
    """Three by three and three by two pixels share six of nine; without the last pixel it were half."""
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.0]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    assert keep_best(boxes, scores, labels, 0.6, 10).tolist() == [0]
    assert keep_best(boxes, scores, labels, 0.7, 10).tolist() == [0, 1]


def test_labels_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).expand(3, 4)
    scores, labels = torch.tensor([0.5, 0.7, 0.6]), torch.tensor([0, 1, 0])
    assert keep_best(boxes, scores, labels, 0.6, 10).tolist() == [1, 2]


def test_nothing_in_nothing_out():
    assert keep_best(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), 0.6, 10).tolist() == []
