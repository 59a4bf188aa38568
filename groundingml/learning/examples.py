"""Accepted annotations as examples to learn from: one for each image of a task, boxes in percent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundingml.training import CocoAnnotations, ImageRecord

_LEAST_SIDE = 0.5  # pixels; thinner boxes hold nothing


@dataclass(frozen=True)
class TaskExample:
    """One image of a task, with what an annotator says is in it.

    reference: where the image is, as in the task's data. boxes: (label, x, y, width, height), percent of the
    upright image. No boxes: there is nothing of any label.
    """

    task: str
    image: str
    reference: str
    boxes: tuple[tuple[str, float, float, float, float], ...]


def task_examples(
    task: str, images: Mapping[str, Any], regions: Sequence[Any], problems: list[str]
) -> list[TaskExample]:
    """The examples of one accepted annotation.

    images: name of the Image tag -> URL. regions: the annotation's ``result``. Boxes of `RectangleLabels`,
    and of a `Rectangle` with `Labels`, which share an id; other kinds of regions are passed over. A turned
    box counts with the upright box around it, a box without a label is noted in ``problems``.
    """
    boxes: dict[str, list[tuple[str, float, float, float, float]]] = {name: [] for name in images}
    labelled: dict[str, list[str]] = {}
    rectangles: dict[str, Mapping[str, Any]] = {}
    for number, region in enumerate(regions):
        if not isinstance(region, Mapping) or not isinstance(region.get("value"), Mapping):
            continue
        value, kind = region["value"], region.get("type")
        key = str(region.get("id") or number)
        if kind in ("rectanglelabels", "labels"):
            names = [name for name in value.get(kind) or () if isinstance(name, str) and name]
            labelled.setdefault(key, []).extend(names)
        if kind in ("rectanglelabels", "rectangle"):
            rectangles[key] = region
    for key, region in rectangles.items():
        image = str(region.get("to_name"))
        if image not in boxes:
            problems.append(f"task {task}: a box on {image!r}, which is not an image of the task")
            continue
        place = _upright(region)
        if place is None:
            problems.append(f"task {task}: a box whose position cannot be read")
        elif not labelled.get(key):
            problems.append(f"task {task}: a box without a label")
        else:
            boxes[image] += [(name, *place) for name in dict.fromkeys(labelled[key])]
    return [
        TaskExample(task, image, str(reference), tuple(boxes[image]))
        for image, reference in images.items()
        if reference
    ]


def annotations_of(
    examples: Iterable[tuple[TaskExample, Path, tuple[int, int]]], names: Sequence[str]
) -> CocoAnnotations:
    """Examples with their images at hand, (example, file, (width, height)), as a data set of ``names``.

    Names that an image has no box of are taken to be absent from it: who accepts an annotation says that it
    is complete.
    """
    records = []
    for example, path, (width, height) in examples:
        boxes, labels = [], []
        for name, x, y, w, h in example.boxes:
            box = (
                max(0.0, x / 100 * width),
                max(0.0, y / 100 * height),
                min(float(width), (x + w) / 100 * width),
                min(float(height), (y + h) / 100 * height),
            )
            if name in names and box[2] - box[0] >= _LEAST_SIDE and box[3] - box[1] >= _LEAST_SIDE:
                boxes.append(box)
                labels.append(name)
        records.append(
            ImageRecord(
                path=path,
                image_id=f"{example.task}/{example.image}",
                width=width,
                height=height,
                boxes_xyxy=tuple(boxes),
                names=tuple(labels),
                weights=(1.0,) * len(boxes),
                absent=tuple(name for name in names if name not in labels),
            )
        )
    return CocoAnnotations(records, list(names), [])


def _upright(region: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """x, y, width, height in percent; Label Studio turns a box around its left top corner, in pixels."""
    value = region["value"]
    numbers = [value.get(name) for name in ("x", "y", "width", "height")]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        return None
    x, y, w, h = (float(number) for number in numbers)
    turn = value.get("rotation") or 0
    if not isinstance(turn, int | float) or turn % 360 == 0:
        return x, y, w, h
    # Percents of unequal sides cannot be turned; pixels can.
    wide, high = region.get("original_width") or 100, region.get("original_height") or 100
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    px, py, pw, ph = x * wide / 100, y * high / 100, w * wide / 100, h * high / 100
    corners = [(px + a * cos - b * sin, py + a * sin + b * cos) for a in (0, pw) for b in (0, ph)]
    left, right = min(c[0] for c in corners), max(c[0] for c in corners)
    top, bottom = min(c[1] for c in corners), max(c[1] for c in corners)
    return left / wide * 100, top / high * 100, (right - left) / wide * 100, (bottom - top) / high * 100
