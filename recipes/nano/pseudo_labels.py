"""Boxes for photos that have none: NanoDet, asked several times, as a teacher.

Every photo is shown at two sizes, once mirrored; the answers are merged by non-maximum suppression. What is
written is a COCO JSON whose boxes carry the teacher's score as their weight. A photo's concept (a name
without a box) becomes a box too, that of the object which the teacher is surest of, unless the concept is
one of the teacher's own classes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from names import phrases
from nanodet_weights import load_nanodet
from PIL import Image
from torch import Tensor

from groundingml.inference.images import load_image
from groundingml.inference.preprocessing import preprocess
from groundingml.models.nanodet import NanoDet, NanoDetHead

VIEWS = ((416, False), (480, True))
"""Short side in pixels, and whether the photo is mirrored."""
LEAST_SCORE = 0.3
MERGE_IOU = 0.6
CONCEPT_WEIGHT = 0.5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@torch.inference_mode()
def teach(nanodet: NanoDet, head: NanoDetHead, image: Image.Image) -> tuple[Tensor, Tensor]:
    """The teacher's candidates in all views: boxes (N, 4) xyxy in pixels of the image, class scores (N,
    80)."""
    boxes, scores = [], []
    for short, mirrored in VIEWS:
        pixels = preprocess([image], (short, 2 * short), MEAN, STD).pixel_values
        height, width = pixels.shape[-2:]
        maps = nanodet(pixels.flip(-1) if mirrored else pixels)
        corners = head.boxes_xyxy(maps)[0]
        if mirrored:
            left, top, right, bottom = corners.unbind(dim=1)
            corners = torch.stack([width - right, top, width - left, bottom], dim=1)
        scale = torch.tensor([image.width / width, image.height / height]).repeat(2)
        boxes.append((corners * scale).clamp(min=0).minimum(torch.tensor(image.size).repeat(2)))
        scores.append(head.class_logits(maps)[0].sigmoid())
    return torch.cat(boxes), torch.cat(scores)


def suppress(boxes: Tensor, scores: Tensor, classes: Tensor, iou: float) -> list[int]:
    """Non-maximum suppression within classes: indices that stay, best first."""
    shifted = (boxes + classes.unsqueeze(1) * 10_000.0).double()
    area = (shifted[:, 2:] - shifted[:, :2]).clamp(min=0).prod(dim=1)
    left = scores.argsort(descending=True).tolist()
    kept = []
    while left:
        best, left = left[0], left[1:]
        kept.append(best)
        if left:
            low = torch.maximum(shifted[best, :2], shifted[left, :2])
            high = torch.minimum(shifted[best, 2:], shifted[left, 2:])
            common = (high - low).clamp(min=0).prod(dim=1)
            overlap = common / (area[best] + area[left] - common).clamp(min=1e-9)
            left = [index for index, value in zip(left, overlap.tolist(), strict=True) if value <= iou]
    return kept


def annotate(
    photos: Sequence[dict[str, Any]], folder: Path, nanodet: NanoDet, head: NanoDetHead
) -> dict[str, Any]:
    """COCO annotations of the photos (entries of `photos.json`)."""
    known = phrases()
    class_of = {phrase: index for index, group in enumerate(known.values()) for phrase in group}
    category_ids = {name: index + 1 for index, name in enumerate(known)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, photo in enumerate(photos, start=1):
        image = load_image(folder / photo["file_name"])
        images.append(
            {"id": image_id, "file_name": photo["file_name"], "width": image.width, "height": image.height}
        )
        boxes, scores = teach(nanodet, head, image)

        def add(name: str, box: Tensor, weight: float, image_id: int = image_id) -> None:
            category = category_ids.setdefault(name, len(category_ids) + 1)
            x, y, right, bottom = (round(value, 1) for value in box.tolist())
            if right - x > 2 and bottom - y > 2:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category,
                        "bbox": [x, y, round(right - x, 1), round(bottom - y, 1)],
                        "weight": round(weight, 3),
                    }
                )

        rows, classes = (scores >= LEAST_SCORE).nonzero(as_tuple=True)
        values = scores[rows, classes]
        for index in suppress(boxes[rows], values, classes, MERGE_IOU):
            add(list(known)[int(classes[index])], boxes[rows[index]], float(values[index]))
        concept = photo["concept"].lower()
        if concept not in class_of:
            add(concept, boxes[int(scores.amax(dim=1).argmax())], CONCEPT_WEIGHT)
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--nanodet", type=Path, required=True, help="nanodet.json beside nanodet.bin")
    parser.add_argument("--photos", type=Path, required=True, help="a folder with photos.json and photos/")
    parser.add_argument("--held-out", type=int, default=200, help="photos kept out of training")
    parser.add_argument("--limit", type=int, help="use only so many photos, drawn at random")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.json and held_out.json")
    args = parser.parse_args()
    nanodet, head = load_nanodet(args.nanodet)
    photos = json.loads((args.photos / "photos.json").read_text("utf-8"))
    order = np.random.default_rng(0).permutation(len(photos))[: args.limit]
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("held_out", order[: args.held_out]), ("train", order[args.held_out :])):
        found = annotate([photos[i] for i in part], args.photos / "photos", nanodet, head)
        (args.out / f"{name}.json").write_text(json.dumps(found), "utf-8")
        print(f"{name}: {len(found['images'])} photos, {len(found['annotations'])} boxes")


if __name__ == "__main__":
    main()
