"""Large images tile by tile, so that what is small in them is seen in full resolution.

The whole image is looked at too, since it alone shows what is larger than a tile. A box that ends at a tile's
inner edge is taken for a part of something: parts that fit together across a seam are joined, and a part
gives way to a box that shows the thing whole. What two views have both found is kept once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from groundingml.inference.images import ImageError
from groundingml.inference.merging import box_iou
from groundingml.inference.scoring import Candidates

View: TypeAlias = "tuple[int, int, int, int]"  # left, top, right, bottom in pixels of the whole image

LEAST_SIZE = 64
MOST_TILES = 400
MOST_BOXES = 3000
"""At most so many boxes for an image in tiles, the best ones."""

SAME_IOU = 0.5
"""Boxes of one label from two views that overlap by so much show one object."""
COVERED = 0.5
"""A part of which so much lies inside a box of another view is a part of that."""
AGREEING = 0.5
"""Two parts belong together when their sides along the seam overlap by so much (intersection over union)."""
CUT_MARGIN = 0.01
"""A box that comes so near to an inner edge, as a fraction of the tile, ends there; boxes are not exact."""


@dataclass(frozen=True)
class Tiling:
    """Square tiles of ``size`` pixels that share ``overlap`` pixels or a little more with each neighbour.

    Whatever is not larger than the overlap is whole in one of the tiles. By default the overlap is a quarter
    of the size.

    Raises:
        ValueError: a size below 64, or an overlap below 0 or above half the size.
    """

    size: int
    overlap: int = -1

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < LEAST_SIZE:
            raise ValueError(f"a tile's size must be a whole number from {LEAST_SIZE}, got {self.size!r}")
        if self.overlap == -1:
            object.__setattr__(self, "overlap", self.size // 4)
        if not isinstance(self.overlap, int) or not 0 <= self.overlap <= self.size // 2:
            raise ValueError(
                f"the overlap of tiles of {self.size} pixels must be a whole number from 0 to "
                f"{self.size // 2}, got {self.overlap!r}"
            )

    @staticmethod
    def parse(text: str) -> Tiling:
        """``"1024"`` or ``"1024:256"``, size and overlap in pixels.

        Raises:
            ValueError: it is neither, or a value is out of range.
        """
        size, separator, overlap = text.partition(":")
        try:
            numbers = [int(size), int(overlap)] if separator else [int(size)]
        except ValueError:
            raise ValueError(f"a tiling looks like 1024 or 1024:256 (size:overlap), not {text!r}") from None
        return Tiling(*numbers)

    def tiles(self, width: int, height: int) -> list[View]:
        """The tiles of an image, all of one size, row by row; none when it is no larger than one tile.

        Raises:
            ImageError: more than 400 tiles.
        """
        across, down = self._starts(width), self._starts(height)
        if len(across) * len(down) > MOST_TILES:
            raise ImageError(
                f"{width}x{height} image",
                f"needs {len(across) * len(down)} tiles of {self.size} pixels, at most {MOST_TILES} are "
                "looked at; use larger tiles",
            )
        if len(across) * len(down) == 1:
            return []
        w, h = min(self.size, width), min(self.size, height)
        return [(left, top, left + w, top + h) for top in down for left in across]

    def _starts(self, length: int) -> list[int]:
        if length <= self.size:
            return [0]
        steps = math.ceil((length - self.size) / (self.size - self.overlap))
        return [round(step * (length - self.size) / steps) for step in range(steps + 1)]


def as_tiling(tile: int | Tiling) -> Tiling:
    """A tile size, or a tiling as it is."""
    return tile if isinstance(tile, Tiling) else Tiling(tile)


def merge_views(views: Sequence[View], found: Sequence[Candidates]) -> Candidates:
    """Candidates of the whole image (the first view) and of its tiles -> candidates of the image, without
    duplicates, best first.

    Args:
        found: for each view its candidates, with boxes relative to the view.
    """
    _, _, width, height = views[0]
    boxes, cut = _in_pixels(views, found)
    view = torch.cat([torch.full_like(one.label_ids, place) for place, one in enumerate(found)])
    every = Candidates.concatenate(list(found))
    parts = _Boxes(boxes, cut, view, every.scores, every.label_ids, every.prompt_numbers).best(MOST_BOXES)
    is_cut = parts.cut.any(1)
    whole, cuts = parts.at(~is_cut), parts.at(is_cut)
    joined = _join(cuts, torch.tensor(views, device=boxes.device), len(views))
    kept = _without_duplicates(whole, joined)
    scale = kept.boxes.new_tensor([width, height])
    low, high = kept.boxes[:, :2] / scale, kept.boxes[:, 2:] / scale
    boxes_cxcywh = torch.cat([(low + high) / 2, high - low], dim=-1)
    return Candidates(boxes_cxcywh, kept.scores, kept.labels, kept.numbers)


@dataclass(frozen=True)
class _Boxes:
    """N boxes in pixels of the whole image. cut: (N, 4) bool, the sides at an inner edge of the tile."""

    boxes: Tensor
    cut: Tensor
    view: Tensor
    scores: Tensor
    labels: Tensor
    numbers: Tensor

    def at(self, chosen: Tensor) -> _Boxes:
        return _Boxes(
            self.boxes[chosen],
            self.cut[chosen],
            self.view[chosen],
            self.scores[chosen],
            self.labels[chosen],
            self.numbers[chosen],
        )

    def best(self, most: int) -> _Boxes:
        return self.at(self.scores.argsort(descending=True, stable=True)[:most])


def _in_pixels(views: Sequence[View], found: Sequence[Candidates]) -> tuple[Tensor, Tensor]:
    """(N, 4) boxes in pixels of the whole image, and (N, 4) whether each side lies at an inner edge."""
    boxes, cut = [], []
    _, _, width, height = views[0]
    for (left, top, right, bottom), candidates in zip(views, found, strict=True):
        x, y, w, h = candidates.boxes_cxcywh.unbind(-1)
        relative = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1).clamp(0, 1)
        inner = torch.tensor([left > 0, top > 0, right < width, bottom < height], device=relative.device)
        from_edge = torch.cat([relative[:, :2], 1 - relative[:, 2:]], dim=1)
        cut.append((from_edge <= CUT_MARGIN) & inner)
        size = relative.new_tensor([right - left, bottom - top] * 2)
        boxes.append(relative * size + relative.new_tensor([left, top] * 2))
    return torch.cat(boxes), torch.cat(cut)


def _join(parts: _Boxes, views: Tensor, first_view: int) -> _Boxes:
    """Parts of one thing in neighbouring tiles -> their enclosing box with the best of their scores; other
    parts as they are. Joined ones come first, each as of a view of its own, numbered from ``first_view``."""
    count = len(parts.scores)
    together = torch.zeros(count, count, dtype=torch.bool, device=parts.boxes.device)
    margin = CUT_MARGIN * (views[-1, 2:] - views[-1, :2])
    for axis in (0, 1):
        start, end = views[parts.view, axis], parts.boxes[:, 2 + axis]
        follows = start[:, None] < start[None, :]
        meets = end[:, None] + 2 * margin[axis] >= parts.boxes[None, :, axis]
        faces = parts.cut[:, None, 2 + axis] & parts.cut[None, :, axis]
        agrees = _interval_iou(parts.boxes[:, 1 - axis], parts.boxes[:, 3 - axis]) >= AGREEING
        together |= follows & meets & faces & agrees
    together &= parts.labels[:, None] == parts.labels[None, :]
    groups = _groups(count, together.nonzero().tolist())
    best = torch.tensor([group[0] for group in groups], dtype=torch.long, device=parts.boxes.device)
    joined = parts.at(best)  # parts come best first
    boxes, view = joined.boxes.clone(), joined.view.clone()
    for place, group in enumerate(groups):
        if len(group) > 1:
            members = parts.boxes[group]
            boxes[place] = torch.cat([members[:, :2].amin(0), members[:, 2:].amax(0)])
            view[place] = first_view + place
    return _Boxes(boxes, joined.cut, view, joined.scores, joined.labels, joined.numbers)


def _interval_iou(low: Tensor, high: Tensor) -> Tensor:
    """(N, N) intersection over union of N intervals with each other."""
    shared = torch.minimum(high[:, None], high[None, :]) - torch.maximum(low[:, None], low[None, :])
    union = torch.maximum(high[:, None], high[None, :]) - torch.minimum(low[:, None], low[None, :])
    return shared.clamp(min=0) / union.clamp(min=1e-6)


def _groups(count: int, pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Connected numbers below ``count``, each group in ascending order, those of several numbers first."""
    leader = list(range(count))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    for one, other in pairs:
        low, high = sorted((find(one), find(other)))
        leader[high] = low
    groups: dict[int, list[int]] = {}
    for number in range(count):
        groups.setdefault(find(number), []).append(number)
    return sorted(groups.values(), key=lambda group: len(group) == 1)


def _without_duplicates(whole: _Boxes, parts: _Boxes) -> _Boxes:
    """Each object once: the best of the boxes that show it whole, else of its parts."""
    boxes = torch.cat([whole.boxes, parts.boxes])
    every = _Boxes(
        boxes,
        torch.cat([whole.cut, parts.cut]),
        torch.cat([whole.view, parts.view]),
        torch.cat([whole.scores, parts.scores]),
        torch.cat([whole.labels, parts.labels]),
        torch.cat([whole.numbers, parts.numbers]),
    )
    rivals = (every.labels[:, None] == every.labels[None, :]) & (every.view[:, None] != every.view[None, :])
    iou = box_iou(boxes, boxes)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)
    shared = iou * (area[:, None] + area[None, :]) / (1 + iou)
    is_part = torch.arange(len(boxes), device=boxes.device) >= len(whole.scores)
    covered = is_part[None, :] & (shared >= COVERED * area[None, :])
    drops = (rivals & ((iou >= SAME_IOU) | covered)).triu(1).cpu()  # row: the box that comes first
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for rank in range(len(boxes)):
        if alive[rank]:
            alive &= ~drops[rank]
    kept = every.at(alive.to(boxes.device))
    return kept.best(len(kept.scores))
