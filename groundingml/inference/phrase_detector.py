"""Detectors that are not ours but take phrases and give boxes: what they share on the way to `Detections`.

Labels, aliases, negative prompts, thresholds, tiles and captions mean for them what they mean for
``Detector``; a subclass only answers for one image and a list of phrases.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from groundingml.inference.assembly import MERGE_IOU, MOST_DETECTIONS, to_detections
from groundingml.inference.detections import Detections
from groundingml.inference.encoded_image import EncodedImage
from groundingml.inference.images import ImageSource, load_image, many_images
from groundingml.inference.labels import Label, Labels, normalise_labels
from groundingml.inference.phrases import extract_phrases
from groundingml.inference.prompts import PromptError, PromptPlan
from groundingml.inference.scoring import Candidates
from groundingml.inference.thresholds import Thresholds
from groundingml.inference.tiling import MOST_BOXES, Tiling, as_tiling, merge_views


@dataclass(frozen=True)
class PhrasePlan(PromptPlan):
    """A question as a list of phrases; ``owners`` holds for each the numbers of the labels it scores for."""

    phrases: tuple[str, ...] = ()
    owners: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class FoundPhrases:
    """N boxes that a foreign model gave.

    boxes_xyxy: (N, 4) in pixels of the image; scores: (N,) in 0..1; phrase_numbers: (N,) int64, places in the
    list of phrases that was asked for.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    phrase_numbers: Tensor


class PhraseDetector(ABC):
    """An `ObjectDetector` around a model that takes phrases.

    Args:
        name: what the user called it.
        checkpoint_digest: identifies the weights.
        default_threshold: the least score that its makers use.
        device: where it computes.
    """

    def __init__(
        self, name: str, checkpoint_digest: str, default_threshold: float, device: torch.device
    ) -> None:
        self.name = name
        self.checkpoint_digest = checkpoint_digest
        self.default_threshold = default_threshold
        self.thresholds = Thresholds(default_threshold)
        self.device = device

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, device={str(self.device)!r})"

    @abstractmethod
    def find(self, image: Image.Image, phrases: Sequence[str], threshold: float) -> FoundPhrases:
        """Boxes on an upright RGB image with scores of at least ``threshold``."""

    @abstractmethod
    def check_phrase(self, phrase: str) -> None:
        """Raise PromptError where the model cannot be asked for a phrase."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence too, of strings
        self,
        images: ImageSource,
        labels: Labels | None = None,
        caption: str | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        merge_iou: float = MERGE_IOU,
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
        merge_iou: float = MERGE_IOU,
        tile: int | Tiling | None = None,
    ) -> list[Detections]: ...

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        labels: Labels | None = None,
        caption: str | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        merge_iou: float = MERGE_IOU,
        tile: int | Tiling | None = None,
    ) -> Detections | list[Detections]:
        """As a call of ``Detector``, but images are always computed one by one (``batch_size`` is taken and
        not used).

        Raises:
            ValueError, ImageError: as ``Detector``.
            RuntimeError: the model failed on an image.
        """
        plan = self.plan(labels, caption)
        threshold = self.default_threshold if threshold is None else threshold
        for name, value in (("threshold", threshold), ("merge_iou", merge_iou)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {value}")
        tiling = None if tile is None else as_tiling(tile)
        many = many_images(images)
        if many is None:
            return self._detect(load_image(images), plan, threshold, merge_iou, tiling)  # type: ignore[arg-type]
        return [self._detect(load_image(image), plan, threshold, merge_iou, tiling) for image in many]

    def encode(self, image: ImageSource) -> EncodedImage:
        """The decoded pixels, for a caller that asks one image several questions: nothing more of a foreign
        model's work can be kept.

        Raises:
            ImageError: the image cannot be read.
        """
        loaded = load_image(image)
        return EncodedImage((loaded.height, loaded.width), torch.from_numpy(np.array(loaded)))

    def detect_encoded(
        self,
        image: EncodedImage,
        labels: Labels | None = None,
        caption: str | None = None,
        threshold: float | None = None,
        merge_iou: float = MERGE_IOU,
    ) -> Detections:
        """What ``detector(image, ...)`` returns, of an image that was encoded before."""
        pixels: np.ndarray = image.features.numpy()
        return self(pixels, labels, caption, threshold, merge_iou=merge_iou)

    def plan(self, labels: Labels | None = None, caption: str | None = None) -> PhrasePlan:
        """The phrases that a question becomes.

        Raises:
            ValueError: neither or both of labels and caption, no labels, or a phrase that the model cannot be
                asked for.
        """
        if (labels is None) == (caption is None):
            given = "neither" if labels is None else "both"
            raise ValueError(f"give either labels=[...] or caption='...', got {given}")
        if labels is None:
            assert caption is not None
            asked = [Label(name) for name in dict.fromkeys(p.text for p in extract_phrases(caption))]
            if not asked:
                raise PromptError(f"there is nothing to look for in the caption {caption!r}")
        else:
            asked = normalise_labels(labels)
        dropped_by: dict[str, list[int]] = {}
        for number, label in enumerate(asked):
            for text in dict.fromkeys(label.negative_prompts):
                dropped_by.setdefault(text, []).append(number)
        negatives = {len(asked) + place: tuple(numbers) for place, numbers in enumerate(dropped_by.values())}
        every = (*asked, *(Label(text) for text in dropped_by))
        owners: dict[str, list[int]] = {}
        for number, label in enumerate(every):
            for text in label.texts:
                phrase = " ".join(text.split())
                self.check_phrase(phrase)
                owners.setdefault(phrase, []).append(number)
        numbers = tuple(tuple(dict.fromkeys(labels_of)) for labels_of in owners.values())
        return PhrasePlan(every, (), (), negatives, tuple(owners), numbers)

    def _detect(
        self,
        image: Image.Image,
        plan: PhrasePlan,
        threshold: float,
        merge_iou: float,
        tiling: Tiling | None,
    ) -> Detections:
        views = [(0, 0, *image.size)]
        if tiling is not None:
            views += tiling.tiles(*image.size)
        if len(views) == 1:
            candidates = self._candidates(image, plan, threshold)
            return to_detections(candidates, (image.height, image.width), plan, MOST_DETECTIONS, merge_iou)
        found = [self._candidates(image.crop(view), plan, threshold) for view in views]
        return to_detections(
            merge_views(views, found), (image.height, image.width), plan, MOST_BOXES, merge_iou
        )

    def _candidates(self, image: Image.Image, plan: PhrasePlan, threshold: float) -> Candidates:
        thresholds = [threshold if label.threshold is None else label.threshold for label in plan.asked]
        # A box of a negative prompt matters when it is better than one of a label that it is for.
        thresholds += [min(thresholds[number] for number in numbers) for numbers in plan.negatives.values()]
        found = self.find(image, plan.phrases, min(thresholds))
        pairs = [
            (row, label, phrase)
            for row, phrase in enumerate(found.phrase_numbers.tolist())
            for label in plan.owners[phrase]
        ]
        rows, labels, phrases = (
            torch.tensor(column, dtype=torch.long)
            for column in (zip(*pairs, strict=True) if pairs else ((),) * 3)
        )
        scores = found.scores.float().cpu()[rows]
        wanted = scores >= torch.tensor(thresholds)[labels]
        rows, labels, phrases, scores = rows[wanted], labels[wanted], phrases[wanted], scores[wanted]
        size = torch.tensor([image.width, image.height], dtype=torch.float32)
        boxes = found.boxes_xyxy.float().cpu().reshape(-1, 4)[rows] / size.repeat(2)
        low, high = boxes[:, :2].clamp(0, 1), boxes[:, 2:].clamp(0, 1)
        return Candidates(torch.cat([(low + high) / 2, high - low], dim=-1), scores, labels, phrases)
