"""Boxes and labels drawn on a picture, with Pillow alone."""

from __future__ import annotations

import colorsys
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from groundingml.inference.images import ImageSource, load_image

if TYPE_CHECKING:
    from groundingml.inference.detections import Detections

# Tried in order for labels that Pillow's own font has no letters for.
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/System/Library/Fonts/PingFang.ttc",
    "arialuni.ttf",
    "arial.ttf",
)
_LONGEST_LABEL = 60  # characters
_MOST_STACKED = 8  # captions moved down for others before they overlap after all


def draw_detections(image: ImageSource, detections: Detections) -> Image.Image:
    """A copy of the image, upright and RGB, with the boxes drawn; line and letter size follow the image's
    size.

    A label has the same colour in every picture. Better detections are drawn over weaker ones.

    Raises:
        ValueError: the image is not the size of the one that the detections are of.
        ImageError: the image cannot be read.
    """
    canvas = load_image(image).copy()
    if (canvas.height, canvas.width) != tuple(detections.image_size):
        expected = f"{detections.image_size[1]}x{detections.image_size[0]}"
        raise ValueError(
            f"these detections are of an image of {expected} pixels, "
            f"this one has {canvas.width}x{canvas.height}"
        )
    unit = (canvas.width * canvas.height) ** 0.5
    line = max(1, round(unit / 250))
    letters = max(10, round(unit / 38))
    draw = ImageDraw.Draw(canvas)
    rows = list(zip(detections.boxes_xyxy, detections.labels, detections.scores, strict=True))
    taken: list[_Area] = []
    captions: list[_Caption] = []
    for box, label, score in rows:  # the best first: it gets the best place
        text = f"{_shortened(label)} {score:.2f}"
        captions.append(
            _place(text, label_color(label), _corners(box, canvas.size), canvas.size, letters, line, taken)
        )
    for box, label, _ in reversed(rows):
        left, top, right, bottom = _corners(box, canvas.size)
        draw.rectangle(
            (left, top, max(left, right), max(top, bottom)), outline=label_color(label), width=line
        )
    for caption in reversed(captions):  # after all boxes, so that no line crosses a word
        _draw_caption(draw, caption)
    return canvas


def label_color(label: str) -> tuple[int, int, int]:
    """The label's colour, the same everywhere: a strong one, picked by a hash of the name."""
    digest = hashlib.sha256(label.encode()).digest()
    hue = int.from_bytes(digest[:2], "big") / 65536
    lightness = 0.42 + 0.16 * digest[2] / 255
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


_Area: TypeAlias = "tuple[int, int, int, int]"  # left, top, right, bottom


@dataclass(frozen=True)
class _Caption:
    text: str
    color: tuple[int, int, int]
    area: _Area
    text_at: tuple[float, float]
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont


def _corners(box: NDArray[np.float32], size: tuple[int, int]) -> _Area:
    left, top, right, bottom = (round(float(value)) for value in box)
    return left, top, min(right, size[0] - 1), min(bottom, size[1] - 1)


def _place(
    text: str,
    color: tuple[int, int, int],
    box: _Area,
    canvas_size: tuple[int, int],
    letters: int,
    line: int,
    taken: list[_Area],
) -> _Caption:
    """Above the box; where there is no room inside its top edge; below captions that are already there."""
    font = _font_for(text, letters)
    pad = max(2, letters // 5)
    x0, y0, x1, y1 = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font=font)
    width, height = round(x1 - x0) + 2 * pad, round(letters * 1.1) + 2 * pad
    left, top, _, _ = box
    x = max(0, min(left, canvas_size[0] - width))
    y = top - height + line if top - height + line >= 0 else top
    y = max(0, min(y, canvas_size[1] - height))
    area = (x, y, x + width - 1, y + height - 1)
    for _ in range(_MOST_STACKED):
        if not any(_overlap(area, other) for other in taken) or area[3] + height >= canvas_size[1]:
            break
        area = (area[0], area[1] + height, area[2], area[3] + height)
    taken.append(area)
    text_at = (area[0] + pad - x0, area[1] + height / 2 - (y0 + y1) / 2)
    return _Caption(text, color, area, text_at, font)


def _overlap(one: _Area, other: _Area) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _draw_caption(draw: ImageDraw.ImageDraw, caption: _Caption) -> None:
    draw.rectangle(caption.area, fill=caption.color)
    red, green, blue = caption.color
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    fill = "black" if brightness > 140 else "white"
    draw.text(caption.text_at, caption.text, font=caption.font, fill=fill)


def _shortened(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, or the first font of the system that has every letter of the text."""
    built_in = _built_in_font(size)
    if isinstance(built_in, ImageFont.FreeTypeFont) and _has_letters(built_in, text):
        return built_in
    for font in _system_fonts(size):
        if _has_letters(font, text):
            return font
    return built_in  # draws boxes for the letters it lacks; the label's colour still tells it apart


@lru_cache(maxsize=8)
def _built_in_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=8)
def _system_fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    fonts = []
    for name in _WIDE_FONTS:
        if name.startswith("/") and not Path(name).exists():
            continue
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue  # not on this system
    return tuple(fonts)


def _has_letters(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether the font draws each letter as something else than its mark for a missing one."""
    missing = _glyph(font, "\U0010fffe")
    return all(letter.isspace() or _glyph(font, letter) != missing for letter in set(text))


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
