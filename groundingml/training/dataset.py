"""Images with boxes as the trainer takes them: read, augmented, scaled as the detector scales them."""

import random
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from groundingml.inference.images import load_image
from groundingml.inference.preprocessing import preprocess
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.training.boxes import xyxy_to_cxcywh
from groundingml.training.coco import CocoAnnotations, ImageRecord


@dataclass(frozen=True)
class Sample:
    """One image to learn from.

    pixel_values: (3, H, W) normalised, or None when ``maps``, the backbone's maps (C_l, H_l, W_l), stand for
    it.
    size: (H, W) in pixels, either way. boxes_cxcywh: (N, 4) normalised to the image; names: N; weights: (N,).
    absent: names to sample negatives from. source: for messages.
    """

    pixel_values: Tensor | None
    size: tuple[int, int]
    boxes_cxcywh: Tensor
    names: tuple[str, ...]
    weights: Tensor
    absent: tuple[str, ...]
    source: str
    maps: tuple[Tensor, ...] | None = None


class TrainingSet(Protocol):
    """What the trainer learns from. ``sample`` must depend on its arguments alone, so that runs can be
    repeated."""

    @property
    def names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: random.Random) -> Sample: ...


@dataclass(frozen=True)
class View:
    """How an image is looked at: mirrored or not, and its shortest side in pixels (None: the model's own
    size)."""

    flip: bool = False
    shortest: int | None = None


@dataclass(frozen=True)
class Augmentation:
    """Draws views. flip: probability of mirroring; shortest_sides: one is drawn each time (none: the model's
    own)."""

    flip: float = 0.5
    shortest_sides: tuple[int, ...] = ()

    def draw(self, rng: random.Random) -> View:
        flip = rng.random() < self.flip
        return View(flip, rng.choice(self.shortest_sides) if self.shortest_sides else None)


class CocoDataset:
    """COCO annotations as a training set.

    augmentation: None looks at every image as it is. Images whose names say left or right are never mirrored.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        config: GroundingDinoConfig,
        augmentation: Augmentation | None = None,
    ) -> None:
        if not annotations.records:
            raise ValueError("there is no image to train on")
        self.records = annotations.records
        self.names = annotations.names
        self.config = config
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.records)

    def view(self, index: int, rng: random.Random) -> View:
        """Draw how to look at an image."""
        if self.augmentation is None:
            return View()
        view = self.augmentation.draw(rng)
        sided = any({"left", "right"} & set(name.lower().split()) for name in self.records[index].names)
        return View(view.flip and not sided, view.shortest)

    def sample(self, index: int, rng: random.Random) -> Sample:
        return self.look(index, self.view(index, rng))

    def look(self, index: int, view: View) -> Sample:
        """The sample in a given view."""
        pixel_values = self.pixels(index, view)
        height, width = pixel_values.shape[1:]
        return self.describe(index, view, (height, width), pixel_values=pixel_values)

    def pixels(self, index: int, view: View) -> Tensor:
        """(3, H, W) float32, normalised and scaled as at inference, without padding."""
        image = load_image(self.records[index].path)
        if view.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        shortest, longest = self.config.image_size
        if view.shortest is not None:
            longest = round(longest * view.shortest / shortest)
            shortest = view.shortest
        batch = preprocess([image], (shortest, longest), self.config.image_mean, self.config.image_std)
        return batch.pixel_values[0]

    def describe(
        self,
        index: int,
        view: View,
        size: tuple[int, int],
        pixel_values: Tensor | None = None,
        maps: tuple[Tensor, ...] | None = None,
    ) -> Sample:
        """The sample in a given view, its image of ``size`` (height, width) given as pixels or as maps."""
        record: ImageRecord = self.records[index]
        scale = torch.tensor([record.width, record.height] * 2, dtype=torch.float32)
        boxes = xyxy_to_cxcywh(torch.tensor(record.boxes_xyxy, dtype=torch.float32).reshape(-1, 4) / scale)
        if view.flip:
            boxes[:, 0] = 1 - boxes[:, 0]
        return Sample(
            pixel_values=pixel_values,
            size=size,
            boxes_cxcywh=boxes,
            names=record.names,
            weights=torch.tensor(record.weights, dtype=torch.float32),
            absent=record.absent,
            source=str(record.path),
            maps=maps,
        )
