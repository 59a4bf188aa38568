"""Detections -> what Label Studio stores. It checks nothing itself, so everything here is valid by
construction.

Coordinates are percent of the upright image: inside 0..100, with width and height above zero. Scores are
finite and in [0, 1]. Region ids are unique across servers and time, since they travel into annotations and
tell later where a correction came from.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from groundingml.labelstudio.config_options import TaskScore
from groundingml.labelstudio.prompts import Query, Target

if TYPE_CHECKING:
    from groundingml.inference import Detections, Thresholds

MIN_SIDE_PIXELS = 0.5
"""Boxes thinner than this after clipping are dropped: they are outside the image, or nothing to see."""


def regions_from_detections(
    detections: Detections, query: Query, thresholds: Thresholds
) -> list[dict[str, Any]]:
    """Label Studio regions for one image's detections, best first.

    A box on a `RectangleLabels` is one of them; a box on `Labels` with a `Rectangle` is two with one id, the
    rectangle and its label, as the editor itself writes it.

    Args:
        detections: boxes in pixels of the upright image, labelled with the names of ``query``'s wanted
            things.
        query: what had been asked for.
        thresholds: the detector's, for labels and controls that set none.
    """
    height, width = (int(side) for side in detections.image_size)
    targets = {wanted.name: wanted.targets for wanted in query.wanted}
    regions = []
    for box, score, name in zip(detections.boxes_xyxy, detections.scores, detections.labels, strict=True):
        value = _percent_box([float(edge) for edge in box], width, height)
        if value is None or not math.isfinite(score):
            continue
        clipped_score = min(max(float(score), 0.0), 1.0)
        for target in targets[name]:
            threshold = thresholds.of(name) if target.threshold is None else target.threshold
            if clipped_score >= threshold:
                regions += _regions(value, clipped_score, target, width, height)
    return sorted(regions, key=lambda region: -region["score"])


def prediction(
    regions: Sequence[dict[str, Any]], model_version: str, task_score: TaskScore | None = None
) -> dict[str, Any]:
    """The item for one task.

    Args:
        task_score: how its score comes from those of its regions: their "mean" (the default), their "min", or
            their "uncertainty", the mean of ``1 - |2 * score - 1|``, which is 1 when the model is torn about
            every box and 0 when it is sure of all. Without regions it is 0.
    """
    scores = list({region["id"]: float(region["score"]) for region in regions}.values())
    if not scores:
        score = 0.0
    elif task_score == "min":
        score = min(scores)
    elif task_score == "uncertainty":
        score = sum(1 - abs(2 * value - 1) for value in scores) / len(scores)
    else:
        score = sum(scores) / len(scores)
    return {"result": list(regions), "score": score, "model_version": model_version}


def labels_of(regions: Iterable[dict[str, Any]]) -> list[str]:
    """The labels in a prediction's ``result``, one for each labelled box."""
    return [
        label
        for region in regions
        for kind in ("rectanglelabels", "labels")
        for label in region["value"].get(kind, ())
    ]


def failed_prediction(reason: str, model_version: str) -> dict[str, Any]:
    """The item for a task that failed: without ``result``, so that Label Studio leaves out this task
    alone."""
    return {"error": reason, "model_version": model_version}


def _percent_box(box_xyxy: Sequence[float], width: int, height: int) -> dict[str, float] | None:
    if not all(math.isfinite(edge) for edge in box_xyxy):
        return None
    left, right = (min(max(edge, 0.0), float(width)) for edge in (box_xyxy[0], box_xyxy[2]))
    top, bottom = (min(max(edge, 0.0), float(height)) for edge in (box_xyxy[1], box_xyxy[3]))
    if right - left < MIN_SIDE_PIXELS or bottom - top < MIN_SIDE_PIXELS:
        return None
    x, y = 100 * left / width, 100 * top / height
    return {
        "x": x,
        "y": y,
        "width": min(100 * (right - left) / width, 100 - x),
        "height": min(100 * (bottom - top) / height, 100 - y),
        "rotation": 0,
    }


def _regions(
    box: dict[str, Any], score: float, target: Target, width: int, height: int
) -> list[dict[str, Any]]:
    control = target.control
    labels = [] if target.label is None else [target.label]
    region: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "to_name": control.image.name,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
    }
    if target.phrase is not None:
        region["meta"] = {"text": [target.phrase]}
    if control.rectangle is None:
        value = {**box, "rectanglelabels": labels}
        return [{**region, "from_name": control.name, "type": "rectanglelabels", "value": value}]
    drawn = {**region, "from_name": control.rectangle, "type": "rectangle", "value": dict(box)}
    if not labels:
        return [drawn]
    return [
        drawn,
        {**region, "from_name": control.name, "type": "labels", "value": {**box, "labels": labels}},
    ]
