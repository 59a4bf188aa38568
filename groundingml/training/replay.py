"""What a model finds before it is trained, as annotations to train on again: replay without old labels.

Fine-tuning forgets what it is not asked about. Old training data is rarely at hand, but the model itself is:
its own answers on any images, weighted by their scores, keep it to what it said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from groundingml.inference import Detector
from groundingml.inference.images import load_image
from groundingml.training.annotations import Annotations, ImageRecord

GENERAL_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "backpack", "umbrella", "handbag", "tie",
    "suitcase", "ball", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "orange", "pizza", "cake", "chair", "couch", "potted plant", "bed", "table", "tv", "laptop", "mouse",
    "remote control", "keyboard", "cell phone", "oven", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "tree", "building", "window", "door", "lamp", "shoe", "hat", "glasses",
    "flower", "sign", "wheel", "plate",
)  # fmt: skip
"""What is asked for again by default: names of everyday things."""


def own_answers(
    detector: Detector,
    images: Sequence[Path],
    names: Sequence[str],
    threshold: float | None = None,
    on_image: Callable[[int], None] | None = None,
) -> Annotations:
    """The detector's boxes for ``names`` as annotations, weighted by score; names not found count as absent.

    threshold: least score, by default the detector's own. on_image: called with the number of images done.
    """
    records = []
    for number, path in enumerate(images, start=1):
        image = load_image(path)
        found = detector(image, labels=list(names), threshold=threshold)
        present = set(found.labels)
        records.append(
            ImageRecord(
                path=path,
                image_id=f"replay {number}",
                width=image.width,
                height=image.height,
                boxes_xyxy=tuple(tuple(map(float, box)) for box in found.boxes_xyxy),  # type: ignore[misc]
                names=tuple(found.labels),
                weights=tuple(float(score) for score in found.scores),
                absent=tuple(name for name in names if name not in present),
            )
        )
        if on_image is not None:
            on_image(number)
    return Annotations(records, list(names), [])


def without(annotations: Annotations, names: Sequence[str]) -> Annotations:
    """The annotations asked about other names only: what is being taught must not be contradicted."""
    taught = {name.casefold() for name in names}
    records = [
        replace(record, absent=tuple(name for name in record.absent if name.casefold() not in taught))
        for record in annotations.records
    ]
    return Annotations(
        records, [name for name in annotations.names if name.casefold() not in taught], annotations.problems
    )
