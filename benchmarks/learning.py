"""How well the embedded model learns blood cells, against the number of corrected images, and what it
forgets.

    python benchmarks/learning.py --data FOLDER                the whole curve, a quarter of an hour
    python benchmarks/learning.py --data FOLDER --images 20    one row; the others keep their last result

FOLDER holds `bccd/` (train.json, test.json and images/: microscope pictures of blood) and `coco128/`
(everyday photos). Each row trains anew from the base model on the first so many training images, as
`groundingml train --project` does, and is measured on all 72 test images and on the everyday photos, through
the same detector that serves. The test images are used for nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from groundingml.inference import Detector, Label
from groundingml.learning.measuring import as_json, measure
from groundingml.learning.teaching import Lesson, teach
from groundingml.training import read_coco

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", default="5,10,20,40,60")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--recipe", default="lora")
    parser.add_argument("--options", default="{}", help="fields of the recipe that differ, as JSON")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "learning.json")
    args = parser.parse_args()
    torch.set_num_threads(2)
    bccd = args.data / "bccd"
    train = read_coco(bccd / "train.json", bccd / "images")
    test = read_coco(bccd / "test.json", bccd / "images")
    everyday = read_coco(args.data / "coco128" / "annotations.json", args.data / "coco128" / "images")

    base = Detector.from_pretrained(args.model, device="cpu")
    rows: list[dict[str, Any]] = [row(base, 0, test, everyday, 0.0, 0.0)]
    for count in (int(number) for number in args.images.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            lesson = Lesson(
                examples=replace(train, records=train.records[:count]),
                labels=[Label(name) for name in train.names],
                base=args.model,
                recipe=args.recipe,
                options=json.loads(args.options),
                device="cpu",
            )
            cpu, wall = time.process_time(), time.monotonic()
            model = teach(lesson, Path(folder), lambda step: None, lambda: False)
            assert model is not None
            cpu, wall = time.process_time() - cpu, time.monotonic() - wall
            taught = Detector.from_pretrained(model, device="cpu")
            rows.append(row(taught, count, test, everyday, cpu, wall))
        print(json.dumps(rows[-1]), flush=True)
    same = {
        "model": args.model,
        "digest": base.checkpoint_digest,
        "recipe": args.recipe,
        "options": json.loads(args.options),
    }
    document = {
        **same,
        "when": time.strftime("%Y-%m-%d"),
        "load_average": round(os.getloadavg()[0], 1),
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "test_images": len(test.records),
        "everyday_images": len(everyday.records),
        "rows": with_kept_rows(rows, args.out, same),
    }
    args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(table(document))


def with_kept_rows(rows: list[dict[str, Any]], file: Path, same: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows and those of an earlier run that were not measured now, if it began with the same model."""
    earlier = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    kept = earlier.get("rows", []) if all(earlier.get(name) == value for name, value in same.items()) else []
    by_images = {one["images"]: one for one in [*kept, *rows]}
    return [by_images[images] for images in sorted(by_images)]


def row(detector: Detector, images: int, test: Any, everyday: Any, cpu: float, wall: float) -> dict[str, Any]:
    """One line of the table: what so many corrected images make of the model."""
    return {
        "images": images,
        "test": as_json(measure(detector, test).evaluation),
        "everyday": as_json(measure(detector, everyday).evaluation),
        "training_cpu_s": round(cpu),
        "training_wall_s": round(wall),
    }


def table(document: dict[str, Any]) -> str:
    """The results as Markdown."""
    labels = list(document["rows"][0]["test"]["labels"])
    lines = [
        f"| corrected images | mAP50 | mAP | {' | '.join(labels)} | everyday photos, mAP50 | CPU s |",
        "|" + "---|" * (5 + len(labels)),
    ]
    for one in document["rows"]:
        cells = [f"{one['test']['map50']:.3f}", f"{one['test']['map']:.3f}"]
        cells += [f"{one['test']['labels'][name]['map50']:.3f}" for name in labels]
        cells += [f"{one['everyday']['map50']:.3f}", str(one["training_cpu_s"]) if one["images"] else "-"]
        lines.append(f"| {one['images'] or 'none: the base model'} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
