"""COCO average precision of a detector, asked exactly as it is asked when serving."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from groundingml.inference import Detections, ObjectDetector
from groundingml.training.annotations import Annotations, Box


@dataclass(frozen=True)
class LabelScore:
    """One label's average precision (IoU 0.50 to 0.95, and at 0.50) and how many boxes it has."""

    ap: float
    ap50: float
    boxes: int


@dataclass(frozen=True)
class Evaluation:
    """COCO's numbers, in 0..1: means over the labels that have boxes. recall: with at most 100 boxes an image
    and label. curves: label -> precision at the recalls 0, 0.01 ... 1, at IoU 0.50."""

    map: float
    map50: float
    map75: float
    recall: float
    labels: dict[str, LabelScore]
    images: int
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """The means by name, as the trainer's ``evaluate`` returns them."""
        return {"map": self.map, "map50": self.map50, "map75": self.map75, "recall": self.recall}


def evaluate_detector(
    detector: ObjectDetector,
    annotations: Annotations,
    *,
    prompts: Mapping[str, Sequence[str]] | None = None,
    threshold: float = 0.0,
    batch_size: int | None = None,
    on_image: Callable[[int], None] | None = None,
) -> Evaluation:
    """Average precision with all names asked at once.

    prompts: what to ask for a name instead of the name itself. threshold: least score that is counted; COCO's
    precision wants all, so 0. on_image: called with the number of images done.
    Raises ImportError when faster-coco-eval is missing; ValueError when no image has a box.
    """
    _import_faster_coco_eval()  # what is missing is said before the detector has worked for nothing
    _need_boxes(annotations)
    labels = {name: tuple((prompts or {}).get(name, (name,))) for name in annotations.names}

    found: list[Detections] = []
    size = batch_size or 1
    for start in range(0, len(annotations.records), size):
        records = annotations.records[start : start + size]
        found += detector([r.path for r in records], labels=labels, threshold=threshold)
        if on_image is not None:
            on_image(start + len(records))
    return score_detections(annotations, found)


def score_detections(annotations: Annotations, detections: Sequence[Detections]) -> Evaluation:
    """Average precision of what was found in the images of ``annotations``, in their order, under its names.

    Raises as ``evaluate_detector`` does.
    """
    coco, coco_eval = _import_faster_coco_eval()
    _need_boxes(annotations)
    category_ids = {name: number for number, name in enumerate(annotations.names, start=1)}
    found = [
        box for number, one in enumerate(detections, start=1) for box in one.to_coco(number, category_ids)
    ]
    truth = coco(_ground_truth(annotations, category_ids))
    evaluation = coco_eval(truth, truth.loadRes(found), iouType="bbox", print_function=_say_nothing)
    evaluation.evaluate()
    evaluation.accumulate()
    # Of all areas and at most 100 boxes: precision (IoU, recall, label), recall (IoU, label).
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    recall = np.asarray(evaluation.eval["recall"])[:, :, 0, -1]
    counted = [name for record in annotations.records for name in record.names]
    scores = {
        name: LabelScore(
            float(precision[:, :, k].mean()), float(precision[0, :, k].mean()), counted.count(name)
        )
        for k, name in enumerate(annotations.names)
        if name in counted
    }
    seen = [k for k, name in enumerate(annotations.names) if name in scores]
    return Evaluation(
        map=float(np.mean([score.ap for score in scores.values()])),
        map50=float(np.mean([score.ap50 for score in scores.values()])),
        map75=float(precision[5][:, seen].mean()),
        recall=float(recall[:, seen].mean()),
        labels=scores,
        images=len(annotations.records),
        curves={
            name: tuple(float(value) for value in precision[0, :, k])
            for k, name in enumerate(annotations.names)
            if name in scores
        },
    )


def _need_boxes(annotations: Annotations) -> None:
    if not any(record.boxes_xyxy for record in annotations.records):
        raise ValueError("there is not one box to compare with, so there is no average precision")


def _import_faster_coco_eval() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ImportError(
            "average precision is computed by faster-coco-eval, which is not installed: "
            "pip install 'groundingml[train]'"
        ) from error
    return COCO, COCOeval_faster


def _ground_truth(annotations: Annotations, category_ids: Mapping[str, int]) -> dict[str, Any]:
    boxes: list[dict[str, Any]] = []
    for image_id, record in enumerate(annotations.records, start=1):
        objects = [(box, name, 0) for box, name in zip(record.boxes_xyxy, record.names, strict=True)]
        objects += [(box, name, 1) for box, name in record.crowds]
        boxes += [
            _annotation(image_id, category_ids[name], box, crowd, len(boxes) + offset)
            for offset, (box, name, crowd) in enumerate(objects, start=1)
        ]
    return {
        "info": {},
        "images": [
            {"id": number, "width": record.width, "height": record.height}
            for number, record in enumerate(annotations.records, start=1)
        ],
        "annotations": boxes,
        "categories": [{"id": number, "name": name} for name, number in category_ids.items()],
    }


def _annotation(image_id: int, category_id: int, box: Box, crowd: int, number: int) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": crowd,
    }


def _say_nothing(*_: object) -> None:
    """faster-coco-eval reports through a function; results are returned instead."""
