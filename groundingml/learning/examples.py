"""Accepted annotations as examples to learn from: one for each image of a task, boxes in percent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundingml.learning.accepted import AcceptedTask
from groundingml.training import Annotations, ImageRecord

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


def task_examples(task: AcceptedTask, problems: list[str]) -> list[TaskExample]:
    """One example for each image of a task. What cannot be used is noted in ``problems``."""
    boxes: dict[str, list[tuple[str, float, float, float, float]]] = {name: [] for name in task.images}
    if not task.images:
        problems.append(f"task {task.task}: its image is not known")
    for region in task.regions:
        if region.image not in boxes:
            problems.append(f"task {task.task}: a box on {region.image!r}, which is not an image of the task")
        elif not region.labels:
            problems.append(f"task {task.task}: a box without a label")
        else:
            box = region.box
            place = (box.x, box.y, box.width, box.height)
            boxes[region.image] += [(name, *place) for name in region.labels]
    return [
        TaskExample(task.task, image, reference, tuple(boxes[image]))
        for image, reference in task.images.items()
        if reference
    ]


def annotations_of(
    examples: Iterable[tuple[TaskExample, Path, tuple[int, int]]], names: Sequence[str]
) -> Annotations:
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
    return Annotations(records, list(names), [])
