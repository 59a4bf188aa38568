"""A training set whose images were put through a frozen backbone once, so that each epoch costs only what is
trained."""

import random
from pathlib import Path

import torch
from torch import Tensor

from groundingml.models.grounding_dino import GroundingDino
from groundingml.training.checkpoint import read_checkpoint, write_checkpoint
from groundingml.training.dataset import CocoDataset, Sample, View


class CachedBackbone:
    """A CocoDataset with the backbone's maps in place of pixels; use it when the backbone is frozen.

    Each view of an image (its mirror image too, if the augmentation draws it) is computed when first asked
    for and kept in memory, or as files in ``folder`` if given; those are only good for the same backbone,
    images and image size. Maps are kept as ``dtype``; float16 halves the space and changes them in the fourth
    digit. The backbone runs in this process: train with ``workers=0``.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        model: GroundingDino,
        folder: Path | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dataset = dataset
        self.names = dataset.names
        self.backbone = model.backbone
        self.folder = folder
        self.dtype = dtype
        self._memory: dict[tuple[int, View], tuple[tuple[int, int], tuple[Tensor, ...]]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int, rng: random.Random) -> Sample:
        view = self.dataset.view(index, rng)
        size, maps = self._maps(index, view)
        return self.dataset.describe(index, view, size, maps=tuple(m.float() for m in maps))

    def _maps(self, index: int, view: View) -> tuple[tuple[int, int], tuple[Tensor, ...]]:
        if self.folder is None:
            if (index, view) not in self._memory:
                self._memory[index, view] = self._compute(index, view)
            return self._memory[index, view]
        path = self.folder / f"{index}-{view.shortest or 'own'}-{'mirrored' if view.flip else 'plain'}.pt"
        if path.is_file():
            state = read_checkpoint(path)
            return state["size"], tuple(state["maps"])
        size, maps = self._compute(index, view)
        write_checkpoint(path, {"size": size, "maps": list(maps)})
        return size, maps

    @torch.no_grad()
    def _compute(self, index: int, view: View) -> tuple[tuple[int, int], tuple[Tensor, ...]]:
        pixel_values = self.dataset.pixels(index, view)
        parameter = next(self.backbone.parameters())
        training = self.backbone.training
        self.backbone.eval()
        maps = self.backbone(pixel_values[None].to(parameter.device, parameter.dtype))
        self.backbone.train(training)
        height, width = pixel_values.shape[1:]
        return (height, width), tuple(m[0].to(self.dtype).cpu() for m in maps)
