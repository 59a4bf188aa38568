"""Rectangles in an annotation's result, as Label Studio writes them.

A box is one entry (`rectanglelabels`), or two with one id: a `rectangle` and its `labels`. Coordinates are
percent of the upright image; a rotation turns the box around its top left corner, clockwise, in degrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABEL_TYPES = ("rectanglelabels", "labels")
_SIDES = ("x", "y", "width", "height")


@dataclass(frozen=True)
class PercentBox:
    """An upright box in percent of the image."""

    x: float
    y: float
    width: float
    height: float

    def as_json(self) -> dict[str, float]:
        """As the store keeps it."""
        return {side: getattr(self, side) for side in _SIDES}

    def iou(self, other: PercentBox) -> float:
        """Intersection over union, 0..1."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        down = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        both = max(across, 0.0) * max(down, 0.0)
        union = self.width * self.height + other.width * other.height - both
        return min(both / union, 1.0) if union > 0 else 0.0


@dataclass(frozen=True)
class AcceptedRegion:
    """A rectangle that an annotator left in an annotation.

    image: name of the `Image` tag. from_name: the control of its label, else that of the rectangle. box: the
    upright box around it. image_width and image_height: in pixels, None where Label Studio did not say.
    """

    region_id: str
    image: str
    from_name: str
    labels: tuple[str, ...]
    box: PercentBox
    rotation: float
    image_width: int | None
    image_height: int | None

    @property
    def label(self) -> str | None:
        """Its first label."""
        return self.labels[0] if self.labels else None


def accepted_regions(result: Iterable[Any]) -> list[AcceptedRegion]:
    """The rectangles of an annotation's result, in order, each once.

    Entries of other types, and rectangles without a usable geometry, are left out.
    """
    entries: dict[str, list[Mapping[str, Any]]] = {}
    for number, entry in enumerate(result):
        if isinstance(entry, Mapping) and entry.get("type") in (*LABEL_TYPES, "rectangle"):
            entries.setdefault(str(entry.get("id") or f"without id {number}"), []).append(entry)
    found = (_region(region_id, parts) for region_id, parts in entries.items())
    return [region for region in found if region is not None]


def _region(region_id: str, parts: Sequence[Mapping[str, Any]]) -> AcceptedRegion | None:
    labels: dict[str, None] = {}
    labelled: Mapping[str, Any] | None = None
    geometry: tuple[PercentBox, float] | None = None
    for part in parts:
        value = part.get("value")
        if not isinstance(value, Mapping):
            continue
        names = value.get(part["type"])
        if isinstance(names, list) and names:
            labelled = labelled or part
            labels |= dict.fromkeys(str(name) for name in names)
        geometry = geometry or _geometry(value, part)
    if geometry is None:
        return None
    told = labelled or parts[0]
    return AcceptedRegion(
        region_id,
        str(told.get("to_name", "")),
        str(told.get("from_name", "")),
        tuple(labels),
        *geometry,
        _pixels(told.get("original_width")),
        _pixels(told.get("original_height")),
    )


def _geometry(value: Mapping[str, Any], part: Mapping[str, Any]) -> tuple[PercentBox, float] | None:
    """The upright box around a rectangle inside the image, and its rotation."""
    numbers = [value.get(side) for side in _SIDES] + [value.get("rotation") or 0]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        return None
    x, y, width, height, rotation = (float(number) for number in numbers)
    if rotation % 360:
        # Turned in pixels, so the image's shape matters; a square is assumed where it is not known.
        across = _pixels(part.get("original_width")) or 1
        down = _pixels(part.get("original_height")) or 1
        turn = math.radians(rotation)
        corners = [(u * width * across, v * height * down) for u, v in ((0, 0), (1, 0), (0, 1), (1, 1))]
        xs = [x + (u * math.cos(turn) - v * math.sin(turn)) / across for u, v in corners]
        ys = [y + (u * math.sin(turn) + v * math.cos(turn)) / down for u, v in corners]
        x, y, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    left, top = max(x, 0.0), max(y, 0.0)
    # Subtracting and adding would move an edge by a rounding error; only what sticks out is cut.
    width = width if left == x and x + width <= 100 else min(x + width, 100.0) - left
    height = height if top == y and y + height <= 100 else min(y + height, 100.0) - top
    if width <= 0 or height <= 0:
        return None
    return PercentBox(left, top, width, height), rotation


def _pixels(number: Any) -> int | None:
    return int(number) if isinstance(number, int | float) and number > 0 else None
