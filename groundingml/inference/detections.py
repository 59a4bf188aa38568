"""What a detector found in one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

    from groundingml.inference.images import ImageSource


@dataclass(frozen=True, eq=False)
class Detections:
    """N boxes with labels and scores, best first.

    Args:
        boxes_xyxy: (N, 4) float32, pixels of the upright image, inside it.
        scores: (N,) float32 in 0..1.
        labels: N names, each one that was asked for (or a phrase of the caption).
        label_ids: (N,) int64, places in ``label_names``.
        image_size: (height, width) of the upright image.
        label_names: all names that were asked for, found or not, each once.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: list[str]
    label_ids: NDArray[np.int64]
    image_size: tuple[int, int]
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.labels)
        shapes = (self.boxes_xyxy.shape, self.scores.shape, self.label_ids.shape)
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(f"{count} labels, but boxes_xyxy, scores and label_ids have the shapes {shapes}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, selection: int | slice | NDArray[Any] | list[int]) -> Detections:
        """Some of the detections: an index, a slice, a list of indices or a boolean mask. Always
        ``Detections``."""
        chosen = np.atleast_1d(np.arange(len(self))[selection])
        return Detections(
            self.boxes_xyxy[chosen],
            self.scores[chosen],
            [self.labels[i] for i in chosen],
            self.label_ids[chosen],
            self.image_size,
            self.label_names,
        )

    def above(self, threshold: float) -> Detections:
        """Those with a score of at least ``threshold``."""
        return self[self.scores >= threshold]

    def moved(self, by: tuple[float, float], image_size: tuple[int, int]) -> Detections:
        """Detections of a part of an image, in pixels of the whole.

        Args:
            by: (x, y) of the part's left top corner.
            image_size: (height, width) of the whole.
        """
        boxes = self.boxes_xyxy + np.array([*by, *by], dtype=np.float32)
        return Detections(boxes, self.scores, self.labels, self.label_ids, image_size, self.label_names)

    def draw(self, image: ImageSource) -> Image.Image:
        """A copy of the image with the boxes drawn on it; the image is read as the detector reads it
        (upright)."""
        from groundingml.inference.drawing import draw_detections

        return draw_detections(image, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON: ``image_size`` [height, width] and a list of
        ``detections``."""
        return {
            "image_size": list(self.image_size),
            "detections": [
                {
                    "label": label,
                    "label_id": int(label_id),
                    "score": round(float(score), 5),
                    "box_xyxy": _rounded(box),
                }
                for label, label_id, score, box in zip(
                    self.labels, self.label_ids, self.scores, self.boxes_xyxy, strict=True
                )
            ],
        }

    def to_coco(
        self, image_id: int | str, category_ids: dict[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """COCO result records: ``bbox`` is [x, y, width, height] in pixels.

        Args:
            category_ids: the data set's id of each label; by default ``label_ids``, which begin at 0.

        Raises:
            KeyError: ``category_ids`` lacks a label that was found.
        """
        return [
            {
                "image_id": image_id,
                "category_id": int(label_id) if category_ids is None else category_ids[label],
                "bbox": _rounded(np.concatenate([box[:2], box[2:] - box[:2]])),
                "score": float(score),
            }
            for label, label_id, score, box in zip(
                self.labels, self.label_ids, self.scores, self.boxes_xyxy, strict=True
            )
        ]

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with the labels as ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs the supervision package: pip install 'groundingml[supervision]'"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.copy(),
            confidence=self.scores.copy(),
            class_id=self.label_ids.copy(),
            data={"class_name": np.array(self.labels, dtype=str)},
        )


def _rounded(values: NDArray[np.float32]) -> list[float]:
    return [round(float(value), 2) for value in values]
