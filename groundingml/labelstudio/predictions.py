"""Detections -> what Label Studio stores. It checks nothing itself, so everything here is valid by
construction.

Coordinates are percent of the upright image: inside 0..100, with width and height above zero. Scores are
finite and in [0, 1]. Region ids are unique across servers and time, since they travel into annotations and
tell later where a correction came from.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from groundingml.labelstudio.prompts import Query, Target

if TYPE_CHECKING:
    from groundingml.inference import Detections

MIN_SIDE_PIXELS = 0.5
"""Boxes thinner than this after clipping are dropped: they are outside the image, or nothing to see."""


def regions_from_detections(
    detections: Detections, query: Query, default_threshold: float
) -> list[dict[str, Any]]:
    """Label Studio regions for one image's detections, best first.

    Args:
        detections: boxes in pixels of the upright image, labelled with the names of ``query``'s wanted
            things.
        query: what had been asked for.
        default_threshold: of controls that set none.
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
            threshold = default_threshold if target.control.threshold is None else target.control.threshold
            if clipped_score >= threshold:
                regions.append(_region(dict(value), clipped_score, name, target, width, height))
    return sorted(regions, key=lambda region: -region["score"])


def prediction(regions: Sequence[dict[str, Any]], model_version: str) -> dict[str, Any]:
    """The item for one task. Its score is the mean of its regions' scores, 0 when there are none."""
    score = sum(region["score"] for region in regions) / len(regions) if regions else 0.0
    return {"result": list(regions), "score": score, "model_version": model_version}


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


def _region(
    value: dict[str, Any], score: float, name: str, target: Target, width: int, height: int
) -> dict[str, Any]:
    region: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "from_name": target.control.name,
        "to_name": target.control.image.name,
        "type": "rectanglelabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
        "value": value,
    }
    if target.label is None:
        value["rectanglelabels"] = []
        region["meta"] = {"text": [name]}
    else:
        value["rectanglelabels"] = [target.label]
    return region
