"""Tiles of large images: where they lie, and that each thing comes out once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groundingml.inference import Detector, ImageError, Label, Tiling, load_image
from groundingml.inference.scoring import Candidates
from groundingml.inference.tiling import merge_views

WIDE = Tiling(100, 20).tiles(180, 100)
"""Two tiles of 100 x 100 pixels beside each other: they share the columns 80 to 100."""
Row = tuple[tuple[float, float, float, float], float, int]  # box in pixels of the whole, score, label


@pytest.mark.parametrize(
    ("tiling", "size", "across", "down", "why"),
    [
        (Tiling(100, 20), (180, 100), [0, 80], [0], "two that share exactly the overlap"),
        (Tiling(100, 20), (181, 50), [0, 40, 81], [0], "one pixel more: three, evenly spread"),
        (Tiling(100), (250, 175), [0, 75, 150], [0, 75], "a quarter by default"),
        (Tiling(100, 0), (200, 100), [0, 100], [0], "no overlap"),
        (Tiling(100, 50), (150, 300), [0, 50], [0, 50, 100, 150, 200], "half"),
    ],
)
def test_where_tiles_lie(
    tiling: Tiling, size: tuple[int, int], across: list[int], down: list[int], why: str
) -> None:
    tiles = tiling.tiles(*size)
    assert sorted({tile[0] for tile in tiles}) == across, why
    assert sorted({tile[1] for tile in tiles}) == down, why
    assert len(tiles) == len(across) * len(down)
    assert {(right - left, bottom - top) for left, top, right, bottom in tiles} == {
        (min(100, size[0]), min(100, size[1]))
    }


def test_every_pixel_is_seen_and_neighbours_share_the_overlap() -> None:
    tiling = Tiling(128, 40)
    for width in range(129, 700, 13):
        starts = sorted({tile[0] for tile in tiling.tiles(width, 90)})
        assert (starts[0], starts[-1] + 128) == (0, width)
        assert all(after - before <= 128 - 40 for before, after in pairwise(starts))


def test_an_image_no_larger_than_a_tile_has_none() -> None:
    assert Tiling(100).tiles(100, 100) == []
    assert Tiling(100).tiles(3, 99) == []


def test_too_many_tiles_are_refused() -> None:
    with pytest.raises(ImageError, match=r"20000x20000 image: needs .* at most 400 .* larger tiles"):
        Tiling(512).tiles(20000, 20000)


@pytest.mark.parametrize(
    ("text", "tiling"), [("1024", Tiling(1024, 256)), ("640:64", Tiling(640, 64)), ("100:0", Tiling(100, 0))]
)
def test_tilings_as_text(text: str, tiling: Tiling) -> None:
    assert Tiling.parse(text) == tiling


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("big", "looks like 1024 or 1024:256"),
        ("1024:", "looks like"),
        ("10", "from 64, got 10"),
        ("100:60", "from 0 to 50, got 60"),
        ("100:-2", "from 0 to 50"),
    ],
)
def test_tilings_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling.parse(text)


def merged(size: tuple[int, int], tiling: Tiling, *found: list[Row]) -> list[Row]:
    """What becomes of boxes found in the whole image, in its first tile, in its second, ..."""
    views = [(0, 0, *size), *tiling.tiles(*size)]
    parts = []
    for number, (left, top, right, bottom) in enumerate(views):
        rows = found[number] if number < len(found) else []
        boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
        boxes = (boxes - torch.tensor([left, top] * 2)) / torch.tensor([right - left, bottom - top] * 2)
        centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        labels = torch.tensor([row[2] for row in rows], dtype=torch.long)
        scores = torch.tensor([row[1] for row in rows])
        parts.append(Candidates(torch.cat([centres, sides], 1), scores, labels, torch.zeros_like(labels)))
    result = merge_views(views, parts)
    centres, sides = result.boxes_cxcywh[:, :2], result.boxes_cxcywh[:, 2:]
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], 1) * torch.tensor([*size] * 2)
    return [
        (tuple(round(edge) for edge in box), round(score, 3), label)  # type: ignore[misc]
        for box, score, label in zip(
            boxes.tolist(), result.scores.tolist(), result.label_ids.tolist(), strict=True
        )
    ]


SMALL = (82.0, 10.0, 98.0, 26.0)  # inside the columns that both tiles share
LEFT, RIGHT = (30.0, 40.0, 100.0, 80.0), (80.0, 40.0, 150.0, 80.0)  # of one thing from 30 to 150
ALL = (30, 40, 150, 80)


@pytest.mark.parametrize(
    ("whole", "first", "second", "expected", "why"),
    [
        ([], [(SMALL, 0.5, 0)], [(SMALL, 0.7, 0)], [(SMALL, 0.7, 0)], "seen by both tiles: the better"),
        ([(SMALL, 0.9, 0)], [(SMALL, 0.5, 0)], [], [(SMALL, 0.9, 0)], "seen by a tile and in the whole"),
        ([], [(SMALL, 0.5, 0)], [(SMALL, 0.7, 1)], [(SMALL, 0.7, 1), (SMALL, 0.5, 0)], "two labels"),
        ([], [(SMALL, 0.5, 0), (SMALL, 0.4, 0)], [], [(SMALL, 0.5, 0), (SMALL, 0.4, 0)], "one view's own"),
        ([], [((10, 10, 20, 20), 0.5, 0)], [], [((10, 10, 20, 20), 0.5, 0)], "in one tile only"),
        ([], [(LEFT, 0.5, 0)], [(RIGHT, 0.7, 0)], [(ALL, 0.7, 0)], "cut by the seam: joined"),
        (
            [((29, 40, 151, 81), 0.3, 0)],
            [(LEFT, 0.5, 0)],
            [(RIGHT, 0.7, 0)],
            [((29, 40, 151, 81), 0.3, 0)],
            "cut by the seam, and seen in the whole",
        ),
        (
            [],
            [((70, 40, 100, 80), 0.9, 0)],
            [((82, 40, 110, 80), 0.4, 0)],
            [((82, 40, 110, 80), 0.4, 0)],
            "cut in one tile only",
        ),
        (
            [],
            [(LEFT, 0.5, 0)],
            [(RIGHT, 0.7, 1)],
            [((80, 40, 150, 80), 0.7, 1), ((30, 40, 100, 80), 0.5, 0)],
            "parts with two labels",
        ),
        ([], [(LEFT, 0.5, 0)], [], [((30, 40, 100, 80), 0.5, 0)], "a part that nothing else shows stays"),
        (
            [],
            [((30, 10, 100, 30), 0.5, 0)],
            [((80, 70, 150, 90), 0.7, 0)],
            [((80, 70, 150, 90), 0.7, 0), ((30, 10, 100, 30), 0.5, 0)],
            "two things that the seam cuts at other heights",
        ),
        ([((0, 0, 180, 100), 0.4, 0)], [], [], [((0, 0, 180, 100), 0.4, 0)], "the whole image has no seams"),
        ([], [], [], [], "nothing at all"),
    ],
)
def test_each_thing_comes_out_once(
    whole: list[Row], first: list[Row], second: list[Row], expected: list[Row], why: str
) -> None:
    assert merged((180, 100), Tiling(100, 20), whole, first, second) == expected, why


def test_what_four_tiles_cut_is_joined() -> None:
    tiling = Tiling(100, 20)  # of 180 x 180: the tiles meet at 80 to 100
    corners = [(50, 60, 100, 100), (80, 60, 140, 100), (50, 80, 100, 130), (80, 80, 140, 130)]
    found = [[(corner, score, 0)] for corner, score in zip(corners, (0.4, 0.6, 0.5, 0.3), strict=True)]
    assert merged((180, 180), tiling, [], *found) == [((50, 60, 140, 130), 0.6, 0)]


def test_what_runs_through_many_tiles_is_joined() -> None:
    tiling = Tiling(100, 20)  # of 420 x 100: five tiles
    pieces = [[((max(left, 30), 40, min(left + 100, 400), 60), 0.5, 0)] for left in (0, 80, 160, 240, 320)]
    assert merged((420, 100), tiling, [], *pieces) == [((30, 40, 400, 60), 0.5, 0)]


def test_a_detector_looks_at_the_whole_and_at_each_tile(prepared: Callable[..., Detector]) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (100, 180, 3), dtype=np.uint8))
    inside_both = [((0.9, 0.5, 0.1, 0.2), {1: 0.6})], [((0.1, 0.5, 0.1, 0.2), {1: 0.8})]  # x from 85 to 95
    detector = prepared([((0.5, 0.5, 1.0, 1.0), {1: 0.5})], *inside_both)
    found = detector(image, labels=["cat"], tile=Tiling(100, 20))
    assert detector.model.calls["image"] == 3  # type: ignore[attr-defined]
    assert found.scores.tolist() == pytest.approx([0.8, 0.5], abs=1e-6)
    assert found.boxes_xyxy.tolist() == [
        pytest.approx([85, 40, 95, 60], abs=1e-3),
        pytest.approx([0, 0, 180, 100]),
    ]
    assert found.image_size == (100, 180)
    (same,) = detector([image], labels=["cat"], tile=Tiling(100, 20))
    assert same.to_dict() == found.to_dict()
    detector.model.calls["image"] = 0  # type: ignore[attr-defined]
    detector(image, labels=["cat"], tile=200)
    assert detector.model.calls["image"] == 1, "no larger than a tile"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="from 64, got 10"):
        detector(image, labels=["cat"], tile=10)


def test_negative_prompts_reach_across_views(prepared: Callable[..., Detector]) -> None:
    image = Image.new("RGB", (180, 100))
    # A cat in the first tile, a better toy at the same place in the second: x from 85 to 95.
    answers = [], [((0.9, 0.5, 0.1, 0.2), {1: 0.6})], [((0.1, 0.5, 0.1, 0.2), {3: 0.8})]
    label = Label("cat", negative_prompts=("toy",))
    assert len(prepared(*answers)(image, labels=[label], tile=Tiling(100, 20))) == 0
    assert len(prepared(*answers)(image, labels=["cat", "toy"], tile=Tiling(100, 20))) == 2


def test_tiles_find_what_is_small_in_a_large_picture(photo_dir: Path) -> None:
    cat = load_image(photo_dir / "cat.jpg").resize((150, 100))
    large = Image.new("RGB", (1500, 1000), (120, 130, 120))
    places = [(40, 50), (675, 450), (1300, 800)]  # the second lies on the seam
    for place in places:
        large.paste(cat, place)
    detector = Detector.from_pretrained("nano", device="cpu")
    found = detector(large, labels=["cat"], tile=Tiling(500, 170))
    pasted = [(x, y, x + 150, y + 100) for x, y in places]
    order = np.argsort(found.boxes_xyxy[:, 0])
    assert len(order) == 3, "each once"
    assert np.abs(found.boxes_xyxy[order] - np.array(pasted)).max() < 15
    assert len(detector(large, labels=["cat"])) < 3, "as a whole it is too small for the model"
