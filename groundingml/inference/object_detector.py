"""What every detector can do, ours or not: the interface that the command line and the server need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, overload

import torch

from groundingml.inference.detections import Detections
from groundingml.inference.encoded_image import EncodedImage
from groundingml.inference.images import ImageSource
from groundingml.inference.labels import Labels
from groundingml.inference.prompts import PromptPlan
from groundingml.inference.thresholds import Thresholds
from groundingml.inference.tiling import Tiling


class RunStopped(RuntimeError):
    """No further image can be computed; the message says why. Any other RuntimeError concerns one image."""


class ObjectDetector(Protocol):
    """Finds what a prompt names. ``Detector`` is one, and so is what ``load_detector`` returns."""

    name: str
    """What the user called it: a short name, a hub id, a path."""
    checkpoint_digest: str
    """Identifies the weights; part of the version string of predictions."""
    default_threshold: float
    """Least score of a reported box, unless the caller or a label says otherwise."""
    thresholds: Thresholds
    """The same with those that were fitted for single labels."""
    device: torch.device

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence too, of strings
        self,
        images: ImageSource,
        labels: Labels | None = None,
        caption: str | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        merge_iou: float = ...,
        tile: int | Tiling | None = None,
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        images: Sequence[ImageSource],
        labels: Labels | None = None,
        caption: str | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        merge_iou: float = ...,
        tile: int | Tiling | None = None,
    ) -> list[Detections]: ...

    def plan(self, labels: Labels | None = None, caption: str | None = None) -> PromptPlan:
        """What a question becomes, to find out before the first image whether it can be asked at all.

        Raises:
            ValueError: neither or both of labels and caption, no labels, or one that cannot be looked for.
        """
        ...

    def encode(self, image: ImageSource) -> EncodedImage:
        """What can be kept of the work for one image, to ask it several questions."""
        ...

    def detect_encoded(
        self,
        image: EncodedImage,
        labels: Labels | None = None,
        caption: str | None = None,
        threshold: float | None = None,
        merge_iou: float = ...,
    ) -> Detections:
        """What ``detector(image, ...)`` returns, of an image that this detector encoded before."""
        ...
