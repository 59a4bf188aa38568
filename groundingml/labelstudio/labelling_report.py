"""What a labelling job did: boxes for each label, the slowest images, and what failed and why."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SLOWEST = 5


@dataclass
class LabellingReport:
    """Filled while the job runs. Items are tasks, or the images of a folder."""

    model_version: str
    total: int = 0
    """Items to do in this run."""
    already: int = 0
    """Items left out because they were labelled by this version before."""
    labelled: int = 0
    without_boxes: int = 0
    boxes: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    """(seconds from fetching the image to its boxes, item), slowest first."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """(item, reason); these have no prediction and are tried again by the next run."""
    interrupted: bool = False
    stopped: str | None = None
    """Why the job could not go on, when it could not."""

    def add(self, item: str, labels: Iterable[str], seconds: float) -> None:
        """Count an item whose boxes, one label each, are stored."""
        found = list(labels)
        self.labelled += 1
        self.without_boxes += not found
        self.boxes.update(found)
        self.slowest = heapq.nlargest(SLOWEST, [*self.slowest, (seconds, item)])

    def fail(self, item: str, reason: str) -> None:
        """Count an item that got no prediction."""
        self.failed.append((item, reason))

    @property
    def left(self) -> int:
        """Items that this run did not come to."""
        return max(self.total - self.labelled - len(self.failed), 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "model_version": self.model_version,
            "total": self.total,
            "already_labelled": self.already,
            "labelled": self.labelled,
            "without_boxes": self.without_boxes,
            "boxes": dict(self.boxes.most_common()),
            "slowest": [{"item": item, "seconds": round(seconds, 3)} for seconds, item in self.slowest],
            "failed": [{"item": item, "reason": reason} for item, reason in self.failed],
            "left": self.left,
            "interrupted": self.interrupted,
            "stopped": self.stopped,
        }
