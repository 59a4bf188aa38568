"""Which found box is which true one: COCO's greedy matching, for one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundingml.inference import Detections
from groundingml.training import ImageRecord

MATCH_IOU = 0.5


@dataclass(frozen=True)
class Matches:
    """One image's found boxes against its true ones.

    truth_of: (N,) for each found box the number of its true box, -1 for none. ignored: (N,) bool, found
    inside
    a crowd of its label: neither right nor wrong. missed: numbers of the true boxes that nothing matched.
    """

    truth_of: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    missed: tuple[int, ...]

    @property
    def false(self) -> NDArray[np.bool_]:
        """(N,) found where there is nothing of that label."""
        return (self.truth_of < 0) & ~self.ignored

    @property
    def errors(self) -> int:
        """Boxes that are wrong or missing."""
        return int(self.false.sum()) + len(self.missed)


def match(record: ImageRecord, found: Detections, least_iou: float = MATCH_IOU) -> Matches:
    """Match boxes of equal label, the best scores first, each with the true box that it overlaps most.

    Each true box is matched once. ``found`` is sorted by score, as detectors return it.
    """
    truth = np.array(record.boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    overlap = pairwise_iou(found.boxes_xyxy.astype(np.float64), truth)
    same = np.array(found.labels, dtype=object)[:, None] == np.array(record.names, dtype=object)[None, :]
    overlap = np.where(same, overlap, 0.0)
    free = np.ones(len(truth), dtype=bool)
    truth_of = np.full(len(found), -1, dtype=np.int64)
    for number in range(len(found)):
        candidates = np.where(free, overlap[number], 0.0)
        if len(candidates) and candidates.max() >= least_iou:
            truth_of[number] = int(candidates.argmax())
            free[truth_of[number]] = False
    return Matches(
        truth_of, _in_crowd(record, found, truth_of, least_iou), tuple(np.flatnonzero(free).tolist())
    )


def pairwise_iou(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4) and (M, 4) corners -> (N, M) intersection over union."""
    union = _areas(boxes)[:, None] + _areas(others)[None] - (both := _intersections(boxes, others))
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _in_crowd(
    record: ImageRecord, found: Detections, truth_of: NDArray[np.int64], least_iou: float
) -> NDArray[np.bool_]:
    """Unmatched boxes that lie in a crowd of their label, by the share of themselves, as COCO counts it."""
    ignored = np.zeros(len(found), dtype=bool)
    boxes = found.boxes_xyxy.astype(np.float64)
    for box, name in record.crowds:
        share = _intersections(boxes, np.array([box]))[:, 0] / np.maximum(_areas(boxes), 1e-9)
        ignored |= (share >= least_iou) & np.array([label == name for label in found.labels], dtype=bool)
    return ignored & (truth_of < 0)


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _intersections(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    areas: NDArray[np.float64] = (high - low).clip(min=0).prod(-1)
    return areas
