"""Images with boxes as the trainer takes them: read, augmented, scaled as the detector scales them."""

import random
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from groundingml.inference.images import load_image
from groundingml.inference.preprocessing import preprocess
from groundingml.models.glip.config import GlipConfig
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.training.annotations import Annotations, ImageRecord
from groundingml.training.augmentation import Augmentation, View, change_colours, seen_boxes


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


class ImageDataset:
    """Annotated images as a training set.

    augmentation: None looks at every image as it is. Images whose names say left or right are never mirrored.
    """

    def __init__(
        self,
        annotations: Annotations,
        config: GroundingDinoConfig | GlipConfig,
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
        record = self.records[index]
        view = self.augmentation.draw(rng, record.boxes_xyxy, (record.width, record.height))
        sided = any({"left", "right"} & set(name.lower().split()) for name in record.names)
        return replace(view, flip=view.flip and not sided)

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
        if view.crop is not None:
            image = image.crop(view.crop)
        image = change_colours(image, view)
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
        boxes, kept = seen_boxes(record.boxes_xyxy, (record.width, record.height), view)
        return Sample(
            pixel_values=pixel_values,
            size=size,
            boxes_cxcywh=boxes,
            names=tuple(record.names[i] for i in kept),
            weights=torch.tensor([record.weights[i] for i in kept], dtype=torch.float32),
            absent=record.absent,
            source=str(record.path),
            maps=maps,
        )
