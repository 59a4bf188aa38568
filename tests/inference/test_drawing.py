from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundingml.inference import Detections
from groundingml.inference.drawing import label_color


def detections(*rows: tuple[tuple[float, ...], str], size: tuple[int, int] = (200, 300)) -> Detections:
    count = len(rows)
    return Detections(
        np.array([box for box, _ in rows], np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.4, count).astype(np.float32),
        [label for _, label in rows],
        np.arange(count),
        size,
    )


GREY = Image.new("RGB", (300, 200), (128, 128, 128))


def test_the_outline_lies_on_the_box_and_nothing_else_changes() -> None:
    picture = np.asarray(detections(((50, 60, 250, 160), "cat")).draw(GREY))
    color = label_color("cat")
    for x, y in [(50, 100), (250, 100), (150, 160), (150, 60)]:
        assert tuple(picture[y, x]) == color, (x, y)
    assert (picture[100, 60:240] == 128).all(), "the inside stays"
    assert (picture[170:] == 128).all(), "below stays"
    assert (picture[:30] == 128).all(), "far above stays"
    assert tuple(np.asarray(GREY)[100, 50]) == (128, 128, 128), "the given image is not drawn on"


def test_the_label_stands_above_the_box_or_inside_where_there_is_no_room() -> None:
    above = np.asarray(detections(((50, 60, 250, 160), "cat")).draw(GREY))
    assert (above[45:59, 52:80] != 128).any()
    inside = np.asarray(detections(((50, 0, 250, 160), "cat")).draw(GREY))
    assert (inside[3:14, 52:80] != 128).any()


def test_better_boxes_are_drawn_over_weaker_ones() -> None:
    box = (50, 60, 250, 160)
    picture = np.asarray(detections((box, "best"), (box, "worst")).draw(GREY))
    assert tuple(picture[160, 150]) == label_color("best")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "nothing found"),
        ([((0, 0, 300, 200), "all of it")], "the whole image"),
        ([((299, 199, 300, 200), "corner")], "in the last pixel"),
        ([((10, 10, 10.5, 10.5), "tiny")], "less than a pixel"),
        ([((0, 0, 300, 200), "x" * 500)], "a label wider than the image"),
        (
            [((0, 0, 90, 90), "перчатки"), ((9, 9, 90, 90), "猫"), ((5, 5, 90, 90), "العربية 🐱")],
            "other scripts",
        ),
        ([((0, 0, 90, 90), "two\nlines\tand a tab")], "white space in labels"),
    ],
)
def test_anything_can_be_drawn(rows: list[tuple[tuple[float, ...], str]], why: str) -> None:
    picture = detections(*rows).draw(GREY)
    assert picture.size == GREY.size, why
    assert (np.asarray(picture) != 128).any() == bool(rows), why


@pytest.mark.parametrize("side", [64, 700, 3000])
def test_lines_scale_with_the_image(side: int) -> None:
    box = (side * 0.25, side * 0.25, side * 0.75, side * 0.75)
    image = Image.new("RGB", (side, side), (128, 128, 128))
    picture = np.asarray(detections((box, "cat"), size=(side, side)).draw(image))
    row = picture[round(side * 0.7)]
    width = int((row[: side // 2] != 128).any(-1).sum())
    assert width == max(1, round(side / 250))


def test_another_image_is_refused() -> None:
    with pytest.raises(ValueError, match="of an image of 300x200 pixels, this one has 200x300"):
        detections(((0, 0, 9, 9), "cat")).draw(GREY.rotate(90, expand=True))


def test_a_turned_photo_is_drawn_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    GREY.save(path, exif=exif)
    assert detections(((0, 0, 9, 9), "cat"), size=(300, 200)).draw(path).size == (200, 300)


def test_colors_are_the_same_in_every_process_and_differ_between_labels() -> None:
    names = ["cat", "dog", "person", "cup", "car", "remote control"]
    code = f"from groundingml.inference.drawing import label_color; print([label_color(n) for n in {names}])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == str(
        [label_color(name) for name in names]
    )
    assert len({label_color(name) for name in names}) == len(names)


def test_labels_of_one_box_stand_below_each_other() -> None:
    box = (50, 60, 250, 160)
    picture = np.asarray(detections((box, "cup"), (box, "coffee"), (box, "spoon")).draw(GREY))
    column = {tuple(pixel) for pixel in picture[40:100, 53]}
    assert {label_color(label) for label in ("cup", "coffee", "spoon")} <= column
