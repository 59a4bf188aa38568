"""What a loss is divided by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepCounts:
    """About all images of an optimiser step, whatever process and batch they are in.

    boxes: that are learned from (GLIP: anchors that learn one); largest: the most boxes in one image.
    quality: what the anchors' box losses are divided by, the sum of their centerness; 0 where there are none.
    """

    boxes: float
    largest: int
    quality: float = 0.0
