"""Boxes for photos that have none: NanoDet, asked several times, as a teacher; and mosaics of these photos.

Every photo is shown at two sizes, plain and mirrored, and what is found in these views is fused: boxes that
overlap become their weighted mean, scored by how many views agree. Four photos at a time also make a mosaic,
whose boxes are those of its photos. There the teacher saw every object twice as large as the student will,
which is what the student has to learn.

Written are the images and COCO JSONs of them. In `train.json`, a box that the teacher doubts has a low
weight, down to 0 (neither object nor background); in `held_out.json`, such boxes are marked as crowds, which
evaluation ignores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from names import phrases
from nanodet_weights import load_nanodet
from numpy.typing import NDArray
from PIL import Image

from groundingml.inference.images import load_image
from groundingml.inference.preprocessing import preprocess
from groundingml.models.nanodet import NanoDet, NanoDetHead

VIEWS = ((416, False), (416, True), (320, False))
"""Short side in pixels, and whether the photo is mirrored."""
LEAST_SCORE = 0.1
UNSURE, SURE = 0.2, 0.45
"""Fused scores at which a box begins to count in training, and counts fully."""
HELD_OUT_SCORE = 0.3
"""From here on a fused box counts as an object in evaluation; below, neither way."""
FUSE_IOU = 0.6
ECHO_IOU = 0.4
MOSAIC_WIDTH = 640
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Box:
    """xyxy in pixels of the image."""

    corners: NDArray[np.float64]
    number: int
    score: float


@torch.inference_mode()
def look(nanodet: NanoDet, head: NanoDetHead, image: Image.Image, short: int, mirrored: bool) -> list[Box]:
    """What the teacher finds in one view, best first, without duplicates."""
    pixels = preprocess([image], (short, 2 * short), MEAN, STD).pixel_values
    height, width = pixels.shape[-2:]
    maps = nanodet(pixels.flip(-1) if mirrored else pixels)
    corners = head.boxes_xyxy(maps)[0].double().numpy()
    if mirrored:
        corners = np.stack([width - corners[:, 2], corners[:, 1], width - corners[:, 0], corners[:, 3]], 1)
    scale = np.tile([image.width / width, image.height / height], 2)
    corners = np.clip(corners * scale, 0, np.tile([image.width, image.height], 2))
    scores = head.class_logits(maps)[0].sigmoid().numpy()
    rows, numbers = (scores >= LEAST_SCORE).nonzero()
    kept: list[Box] = []
    for index in np.argsort(-scores[rows, numbers]):
        row, number = rows[index], int(numbers[index])
        same = [box for box in kept if box.number == number]
        if not same or overlap(corners[row], same).max() <= FUSE_IOU:
            kept.append(Box(corners[row], number, float(scores[row, number])))
    return kept


def overlap(corners: NDArray[np.float64], boxes: Sequence[Box]) -> NDArray[np.float64]:
    """The IoU of a box with each of several."""
    others = np.stack([box.corners for box in boxes])
    low, high = np.maximum(corners[:2], others[:, :2]), np.minimum(corners[2:], others[:, 2:])
    common = (high - low).clip(min=0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (corners[2:] - corners[:2]).prod()
    result: NDArray[np.float64] = common / np.maximum(areas - common, 1e-9)
    return result


def fuse(views: Sequence[Sequence[Box]]) -> list[Box]:
    """Weighted boxes fusion (arXiv:1910.13302): means of the boxes that agree; a view without one counts
    as 0."""
    groups: list[list[Box]] = []
    fused: list[Box] = []
    for box in sorted((box for view in views for box in view), key=lambda box: -box.score):
        same = [i for i, other in enumerate(fused) if other.number == box.number]
        overlaps = overlap(box.corners, [fused[i] for i in same]) if same else np.zeros(1)
        if overlaps.max() > FUSE_IOU:
            place = same[int(overlaps.argmax())]
            groups[place].append(box)
        else:
            place = len(groups)
            groups.append([box])
            fused.append(box)
        group = groups[place]
        weights = np.array([member.score for member in group])
        corners = np.average([member.corners for member in group], axis=0, weights=weights)
        fused[place] = Box(corners, box.number, float(weights.sum() / max(len(views), len(group))))
    return [box for box in fused if box.score >= LEAST_SCORE]


def without_echoes(boxes: Sequence[Box]) -> list[Box]:
    """Leave out what is doubtful and overlaps a surer box of its class: a second answer for that object,
    which the student shall learn not to give."""
    sure = [box for box in boxes if box.score >= HELD_OUT_SCORE]
    kept = []
    for box in boxes:
        same = [other for other in sure if other.number == box.number]
        if box.score >= HELD_OUT_SCORE or not same or overlap(box.corners, same).max() <= ECHO_IOU:
            kept.append(box)
    return kept


def mosaic(tiles: Sequence[tuple[Image.Image, list[Box]]]) -> tuple[Image.Image, list[Box]]:
    """Four photos in two rows, each row as wide as the other, and their boxes."""
    placed = []
    top = 0
    for row in (tiles[:2], tiles[2:4]):
        height = round(MOSAIC_WIDTH / sum(image.width / image.height for image, _ in row))
        left = 0
        for number, (image, boxes) in enumerate(row):
            width = MOSAIC_WIDTH - left if number else round(image.width * height / image.height)
            placed.append((image.resize((width, height)), (left, top)))
            scale = np.tile([width / image.width, height / image.height], 2)
            moved = [Box(b.corners * scale + np.tile([left, top], 2), b.number, b.score) for b in boxes]
            placed[-1] = (*placed[-1], moved)
            left += width
        top += height
    canvas = Image.new("RGB", (MOSAIC_WIDTH, top))
    for image, corner, _ in placed:
        canvas.paste(image, corner)
    return canvas, [box for _, _, boxes in placed for box in boxes]


def annotations(images: Sequence[tuple[str, Image.Image, list[Box]]], held_out: bool) -> dict[str, Any]:
    """Images with their names and boxes as a COCO JSON."""
    entries: list[dict[str, Any]] = []
    for image_id, (_, _, boxes) in enumerate(images, start=1):
        for box in boxes:
            x, y, right, bottom = (round(float(value), 1) for value in box.corners)
            if right - x <= 2 or bottom - y <= 2:
                continue
            entry = {"id": len(entries) + 1, "image_id": image_id, "category_id": box.number + 1}
            entry |= {"bbox": [x, y, round(right - x, 1), round(bottom - y, 1)], "iscrowd": 0}
            if held_out:
                entry["iscrowd"] = int(box.score < HELD_OUT_SCORE)
            else:
                entry["weight"] = round(min(max((box.score - UNSURE) / (SURE - UNSURE), 0.0), 1.0), 3)
            entries.append(entry)
    return {
        "images": [
            {"id": number, "file_name": name, "width": image.width, "height": image.height}
            for number, (name, image, _) in enumerate(images, start=1)
        ],
        "annotations": entries,
        "categories": [{"id": number, "name": name} for number, name in enumerate(phrases(), start=1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nanodet", type=Path, required=True, help="nanodet.json beside nanodet.bin")
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--files", default="*.jpg", help="which of them, as a pattern")
    parser.add_argument("--held-out", type=int, default=100, help="photos kept out of training")
    parser.add_argument("--limit", type=int, help="use only so many photos, drawn at random")
    parser.add_argument("--out", type=Path, required=True, help="folder for images and annotations")
    args = parser.parse_args()
    nanodet, head = load_nanodet(args.nanodet)
    files = sorted(args.photos.glob(args.files))
    rng = np.random.default_rng(0)
    order = rng.permutation(len(files))[: args.limit]
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    for part, numbers in (("held_out", order[: args.held_out]), ("train", order[args.held_out :])):
        images: list[tuple[str, Image.Image, list[Box]]] = []
        for number in numbers:
            image = load_image(files[number])
            boxes = without_echoes(fuse([look(nanodet, head, image, *view) for view in VIEWS]))
            images.append((files[number].name, image, boxes))
        # Each photo is in two mosaics, with other photos.
        for draw in range(2):
            shuffled = rng.permutation(len(numbers))
            for start in range(0, len(shuffled) - 3, 4):
                tiles = [images[i][1:] for i in shuffled[start : start + 4]]
                images.append((f"mosaic_{part}_{draw}_{start // 4}.jpg", *mosaic(tiles)))
        for name, image, _ in images:
            image.save(args.out / "images" / name, quality=92)
        content = annotations(images, held_out=part == "held_out")
        (args.out / f"{part}.json").write_text(json.dumps(content), "utf-8")
        print(f"{part}: {len(images)} images, {len(content['annotations'])} boxes", flush=True)


if __name__ == "__main__":
    main()
