"""A training set whose images were put through a frozen backbone once, so that each epoch costs only what is
trained."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from groundingml.models.grounding_dino import GroundingDino
from groundingml.training.augmentation import View
from groundingml.training.checkpoint import read_checkpoint, write_checkpoint
from groundingml.training.dataset import ImageDataset, Sample


class CachedBackbone:
    """An ImageDataset with the backbone's maps in place of pixels; use it when the backbone is frozen.

    Each view of an image (its mirror image too, if the augmentation draws it) is computed when first asked
    for and kept in memory, or as files in ``folder`` if given; those are only good for the same backbone,
    images and augmentation. Maps are kept as ``dtype``; float16 halves the space and changes them in the
    fourth digit. The backbone runs in this process: train with ``workers=0``.

    views: how many views of each image are drawn, once and for all; needed where the augmentation has no end
    of them (crops, colours), and a bound on the space. None: as many as are drawn.
    maps_of: what is kept of an image (1, 3, H, W); by default what the backbone returns.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        model: GroundingDino,
        folder: Path | None = None,
        dtype: torch.dtype = torch.float32,
        views: int | None = None,
        maps_of: Callable[[Tensor], Sequence[Tensor]] | None = None,
    ) -> None:
        self.dataset = dataset
        self.names = dataset.names
        self.backbone = model.backbone
        self.maps_of = maps_of or model.backbone
        self.folder = folder
        self.dtype = dtype
        self.views = views
        self._memory: dict[tuple[int, View], tuple[tuple[int, int], tuple[Tensor, ...]]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int, rng: random.Random) -> Sample:
        view = self._view(index, rng)
        size, maps = self._maps(index, view)
        return self.dataset.describe(index, view, size, maps=tuple(m.float() for m in maps))

    def view_bytes(self) -> int:
        """How much memory one view takes: of the first image, as it is."""
        return sum(m.numel() * m.element_size() for m in self._compute(0, View())[1])

    def _view(self, index: int, rng: random.Random) -> View:
        if self.views is None:
            return self.dataset.view(index, rng)
        number = rng.randrange(self.views)
        # The first is the image as it is: what will be asked about.
        return View() if number == 0 else self.dataset.view(index, random.Random(f"view {index} {number}"))

    def _maps(self, index: int, view: View) -> tuple[tuple[int, int], tuple[Tensor, ...]]:
        if self.folder is None:
            if (index, view) not in self._memory:
                self._memory[index, view] = self._compute(index, view)
            return self._memory[index, view]
        path = self.folder / f"{index}-{_file_name(view)}.pt"
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
        maps = self.maps_of(pixel_values[None].to(parameter.device, parameter.dtype))
        self.backbone.train(training)
        height, width = pixel_values.shape[1:]
        return (height, width), tuple(m[0].to(self.dtype).cpu() for m in maps)


def _file_name(view: View) -> str:
    parts = [str(view.shortest or "own"), "mirrored" if view.flip else "plain"]
    if view.crop is not None:
        parts.append("x".join(map(str, view.crop)))
    if (view.brightness, view.contrast, view.colour) != (1.0, 1.0, 1.0):
        parts.append(f"{view.brightness:.4f}x{view.contrast:.4f}x{view.colour:.4f}")
    return "-".join(parts)
