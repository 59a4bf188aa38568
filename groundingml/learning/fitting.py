"""A least score for each label, fitted on images that were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from groundingml.learning.matching import match
from groundingml.learning.measuring import ImageResult

FLOOR = 0.05
"""No fitted threshold is lower: what a label finds at such scores is noise on the next images."""
LEAST_EXAMPLES = 3
"""A label with fewer true boxes keeps the model's own threshold."""
PRIOR_EXAMPLES = 5
"""The model's own threshold counts as much as so many true boxes."""
PLATEAU = 0.98
"""All thresholds with so much of the best F1 are as good as the best one: their middle is taken."""


@dataclass(frozen=True)
class FittedThreshold:
    """A label's threshold, and how good it is on the images it was fitted on.

    f1, precision, recall: at IoU 0.5, at this threshold; examples: true boxes.
    """

    threshold: float
    f1: float
    precision: float
    recall: float
    examples: int


def fit_thresholds(results: Sequence[ImageResult], default: float) -> dict[str, FittedThreshold]:
    """The threshold with the best F1 for each label that has examples enough.

    F1 is flat around its best, and with few examples jumps: so the middle of all thresholds that are nearly
    as good is taken, drawn towards ``default`` the more the fewer examples there are, and never below FLOOR.
    """
    scores: dict[str, list[tuple[float, bool]]] = {}
    examples: dict[str, int] = {}
    for result in results:
        for name in result.record.names:
            examples[name] = examples.get(name, 0) + 1
        matches = match(result.record, result.found)
        for i, label in enumerate(result.found.labels):
            if not matches.ignored[i]:
                right = bool(matches.truth_of[i] >= 0)
                scores.setdefault(label, []).append((float(result.found.scores[i]), right))
    return {
        name: _fit(scores.get(name, []), count, default)
        for name, count in examples.items()
        if count >= LEAST_EXAMPLES
    }


def thresholds_file(fitted: Mapping[str, FittedThreshold], default: float) -> dict[str, Any]:
    """The content of thresholds.json; the detector reads the thresholds, the rest is for people."""
    rounded = {
        name: {key: round(value, 4) if key != "examples" else value for key, value in asdict(one).items()}
        for name, one in sorted(fitted.items())
    }
    return {"default": default, "labels": rounded}


def _fit(scores: list[tuple[float, bool]], examples: int, default: float) -> FittedThreshold:
    ordered = sorted(scores, reverse=True)
    values = np.array([score for score, _ in ordered])
    right = np.cumsum([is_right for _, is_right in ordered])
    taken = np.arange(1, len(ordered) + 1)
    # Keeping the first k boxes; a threshold half-way to the next score keeps exactly those.
    f1 = 2 * right / (taken + examples) if len(ordered) else np.zeros(0)
    best = default
    if len(ordered) and f1.max() > 0:
        following = np.append(values[1:], 0.0)
        distinct = values > following  # a threshold between equal scores does not exist
        best_f1 = f1[distinct].max()
        # The plateau around the best: what lies between its ends may dip, but not by more than the plateau.
        good = np.flatnonzero(distinct & (f1 >= PLATEAU * best_f1))
        best = float((values[good[0]] + following[good[-1]]) / 2)
    threshold = (examples * best + PRIOR_EXAMPLES * default) / (examples + PRIOR_EXAMPLES)
    threshold = round(min(max(threshold, FLOOR), 1.0), 4)
    kept = int((values >= threshold).sum()) if len(ordered) else 0
    hits = int(right[kept - 1]) if kept else 0
    return FittedThreshold(
        threshold=threshold,
        f1=2 * hits / (kept + examples),
        precision=hits / kept if kept else 0.0,
        recall=hits / examples,
        examples=examples,
    )
