"""What several detectors found on the same photos, in one picture: a column for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from groundingml.inference.detections import Detections

_CELL = 640  # pixels, the width of a photo
_TALLEST = 900
_GAP = 8
_HEAD = 44
_FOOT = 30
_PAPER, _INK, _GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@dataclass(frozen=True)
class Column:
    """One detector's answers: its name, and for each photo its detections and the seconds they took."""

    name: str
    found: list[Detections]
    seconds: list[float]


def draw_comparison(photos: Sequence[Image.Image], columns: Sequence[Column]) -> Image.Image:
    """The picture, with each column's name on top and the number of boxes and the time under each photo.

    Args:
        photos: upright RGB images.
        columns: with an answer for each photo.
    """
    sizes = [_fit(photo) for photo in photos]
    width = len(columns) * (_CELL + _GAP) + _GAP
    height = _HEAD + sum(tall + _FOOT + _GAP for _, tall in sizes)
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, column in enumerate(columns):
        left = _GAP + place * (_CELL + _GAP)
        _write(draw, column.name, (left + _CELL / 2, _HEAD / 2), 22, _INK)
        top = _HEAD
        for photo, size, found, seconds in zip(photos, sizes, column.found, column.seconds, strict=True):
            cell = found.draw(photo).resize(size, Image.Resampling.LANCZOS)
            canvas.paste(cell, (left + (_CELL - size[0]) // 2, top))
            count = f"{len(found)} box" if len(found) == 1 else f"{len(found)} boxes"
            _write(
                draw, f"{count}, {seconds:.2f} s", (left + _CELL / 2, top + size[1] + _FOOT / 2), 18, _GREY
            )
            top += size[1] + _FOOT + _GAP
    return canvas


def _fit(photo: Image.Image) -> tuple[int, int]:
    scale = min(_CELL / photo.width, _TALLEST / photo.height)
    return max(1, round(photo.width * scale)), max(1, round(photo.height * scale))


def _write(
    draw: ImageDraw.ImageDraw, text: str, centre: tuple[float, float], letters: int, ink: tuple[int, int, int]
) -> None:
    """A line of text, made smaller until it fits a column."""
    font = ImageFont.load_default(letters)
    while letters > 9 and draw.textlength(text, font=font) > _CELL - _GAP:
        letters -= 1
        font = ImageFont.load_default(letters)
    draw.text(centre, text, font=font, fill=ink, anchor="mm")
