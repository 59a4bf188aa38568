"""What all readers check: pictures that open, boxes that lie in them, and a place for every complaint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from groundingml.inference.images import ImageError, load_image
from groundingml.training.annotations import Box, DatasetError

BadRecords: TypeAlias = Literal["refuse", "skip"]
"""What to do about records that cannot be used: refuse the file, or leave them out and say so."""

_ORIENTATION = 0x0112


class BadRecord(Exception):
    """Why one record cannot be used."""


def for_each(
    entries: Iterable[Any], use: Callable[[Any], None], problems: list[str], place: Callable[[int, Any], str]
) -> None:
    """Call ``use`` on each entry; what it refuses is noted with its place (of the entry's number, and it)."""

    def refusal(entry: Any) -> BadRecord | None:
        try:
            use(entry)
        except BadRecord as bad:
            return bad
        return None

    for number, entry in enumerate(entries):
        bad = refusal(entry)
        if bad is not None:
            problems.append(f"{place(number, entry)}: {bad}")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DatasetError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DatasetError(
            str(path), [f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"]
        ) from error


def read_text(path: Path) -> str:
    """A file's text in UTF-8.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(str(path), [f"cannot be read: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        raise DatasetError(str(path), [f"not UTF-8 text (byte {error.start})"]) from error


def upright_size(path: Path, decode: bool = False) -> tuple[int, int]:
    """(width, height) of a picture as it is looked at. decode: read it to its end.

    Raises:
        BadRecord: it is missing or no picture.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION, 1) >= 5:  # stored lying on its side
                width, height = height, width
    except FileNotFoundError as error:
        raise BadRecord(f"no such file: {path}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BadRecord(f"{path}: {_why_unreadable(path) or error}") from error
    unreadable = _why_unreadable(path) if decode else None
    if unreadable is not None:
        raise BadRecord(f"{path}: {unreadable}")
    return width, height


def box_inside(x: float, y: float, w: float, h: float, width: int, height: int) -> Box:
    """Left, top, width and height of a box in pixels -> its corners, cut at the image's edges.

    Raises:
        BadRecord: it has no area, or lies outside the image of ``width`` and ``height``.
    """
    shown = f"[{x:g}, {y:g}, {w:g}, {h:g}]"
    if w <= 0 or h <= 0:
        raise BadRecord(f"'bbox' has no area: {shown}")
    clipped = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise BadRecord(f"'bbox' {shown} lies outside its {width}x{height} image")
    return clipped


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _why_unreadable(path: Path) -> str | None:
    try:
        load_image(path)
    except ImageError as error:
        return error.reason
    return None
