"""How good a detector is on a set of images: asked as it is asked when serving, every box kept for a closer
look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from groundingml.inference import Detections, Label, ObjectDetector, Thresholds
from groundingml.learning.matching import match
from groundingml.training import Annotations, Evaluation, ImageRecord, score_detections


@dataclass(frozen=True)
class ImageResult:
    """One image with its true boxes and everything that was found, of any score."""

    record: ImageRecord
    found: Detections

    def shown(self, thresholds: Thresholds) -> Detections:
        """What a user would see of it."""
        least = [thresholds.of(label) for label in self.found.labels]
        return self.found[[i for i, score in enumerate(self.found.scores) if score >= least[i]]]


@dataclass(frozen=True)
class Measurement:
    """A detector's average precision, and what it found in each image."""

    evaluation: Evaluation
    results: list[ImageResult]

    def worst(self, thresholds: Thresholds, count: int) -> list[tuple[ImageResult, int]]:
        """The images with most wrong and missing boxes, the worst first, with their number; none without
        any."""
        errors = [(result, match(result.record, result.shown(thresholds)).errors) for result in self.results]
        return sorted((one for one in errors if one[1]), key=lambda one: -one[1])[:count]


def measure(
    detector: ObjectDetector,
    annotations: Annotations,
    labels: Sequence[Label] | None = None,
    on_image: Callable[[int], None] | None = None,
) -> Measurement:
    """Find everything in every image, and score it.

    labels: what to ask for, by default the names of ``annotations``. Names without annotation are asked too,
    as when serving, but count only where they take a name's place. on_image: called with the number of images
    done.

    Raises:
        ValueError: no image has a box. ImportError: faster-coco-eval is missing. ImageError: a broken image.
    """
    asked = [Label(name) for name in annotations.names] if labels is None else labels
    # Of any score: average precision counts the order, not a threshold.
    asked = [Label(label.name, label.prompts, 0.0, label.negative_prompts) for label in asked]
    unknown = sorted(
        {name for record in annotations.records for name in record.names} - {a.name for a in asked}
    )
    if unknown:
        raise ValueError(f"the annotations have boxes of {', '.join(unknown[:8])}, which are not asked for")
    results = []
    for number, record in enumerate(annotations.records, start=1):
        results.append(ImageResult(record, detector(record.path, labels=asked)))
        if on_image is not None:
            on_image(number)
    names = Annotations(annotations.records, [label.name for label in asked], annotations.problems)
    return Measurement(score_detections(names, [result.found for result in results]), results)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The numbers as plain values, for files, the store and `--json`."""
    return {
        **{name: round(value, 6) for name, value in evaluation.metrics().items()},
        "images": evaluation.images,
        "labels": {
            name: {"map": round(score.ap, 6), "map50": round(score.ap50, 6), "boxes": score.boxes}
            for name, score in evaluation.labels.items()
        },
    }
