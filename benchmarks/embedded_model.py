"""Measures the embedded model on everyday photos: what it finds by known names, by synonyms, and by names it
never met.

    python benchmarks/embedded_model.py --data FOLDER [--model nano] [--out RESULTS.json]

FOLDER holds `coco128/` (COCO's annotations.json and images/: 128 photos of train2017) and, for names outside
the vocabulary, `photos/` with photos.json. The detector is called as users call it: all names of a set at
once, no thresholds, no suppression beyond the model's own.

NanoDet, whose features and classes the model builds on, was trained on COCO train2017, which coco128 is drawn
from. These are therefore no zero-shot numbers. The project's own training never saw coco128.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from groundingml.inference import Detector
from groundingml.models.grounding_dino.dense_proposals import DenseProposals
from groundingml.training import evaluate_detector, read_coco

ROOT = Path(__file__).resolve().parents[1]

VOC = {
    "person": "person", "bicycle": "bicycle", "car": "car", "motorcycle": "motorbike",
    "airplane": "aeroplane", "bus": "bus", "train": "train", "boat": "boat", "bird": "bird", "cat": "cat",
    "dog": "dog", "horse": "horse", "sheep": "sheep", "cow": "cow", "bottle": "bottle", "chair": "chair",
    "couch": "sofa", "potted plant": "potted plant", "dining table": "dining table", "tv": "tv monitor",
}  # fmt: skip
"""COCO's name -> PASCAL VOC's."""

CONTROLS = {
    "bird": "bat", "cat": "raccoon", "dog": "hyena", "horse": "donkey", "elephant": "rhinoceros",
    "bear": "panda", "zebra": "antelope", "giraffe": "llama",
}  # fmt: skip
"""Animals of the test photos -> another animal, whose name is asked for on the same photos."""

OUTSIDE = {
    "goldfish": "iguana", "great white shark": "koala", "box turtle": "jellyfish",
    "common iguana": "lobster", "koala": "snail", "lobster": "beaver", "flamingo": "walrus",
    "jellyfish": "chimpanzee", "snail": "goldfish", "chimpanzee": "flamingo", "beaver": "centipede",
    "hippopotamus": "tarantula", "tarantula": "hippopotamus", "centipede": "box turtle",
    "starfish": "koala", "teapot": "violin", "violin": "teapot", "acoustic guitar": "hammer",
    "hammer": "acoustic guitar", "sunglasses": "accordion", "accordion": "sunglasses",
    "lighthouse": "washer", "washer": "lighthouse", "windmill": "typewriter", "tank": "windmill",
    "wheelbarrow": "snowmobile", "snowmobile": "wheelbarrow", "fountain": "harp", "harp": "fountain",
    "castle": "stethoscope",
}  # fmt: skip
"""Concepts of ImageNet that no fitted name covers -> another one, asked for on the same photos."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "embedded_model.json")
    args = parser.parse_args()
    torch.set_num_threads(2)
    detector = Detector.from_pretrained(args.model, device="cpu")
    coco = json.loads((args.data / "coco128" / "annotations.json").read_text("utf-8"))
    images = args.data / "coco128" / "images"
    synonyms = _recipe_names().HELD_OUT_SYNONYMS

    results: dict[str, Any] = {
        "model": detector.name,
        "digest": detector.checkpoint_digest,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "sets": {
            "COCO, 80 names": average_precision(detector, coco, images, {}),
            "VOC, 20 names": average_precision(detector, only(coco, list(VOC)), images, VOC),
            "held-out synonyms": average_precision(detector, only(coco, list(synonyms)), images, synonyms),
            "the same classes by COCO's names": average_precision(
                detector, only(coco, list(synonyms)), images, {}
            ),
        },
        "forgotten animals": forgotten_animals(detector, coco, images),
        "seconds for a 640x480 photo and 10 labels": latency(detector, images),
    }
    if (args.data / "photos.json").is_file():
        results["names outside the vocabulary"] = outside_names(detector, args.data)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    print(table(results))


def average_precision(
    detector: Detector, coco: Mapping[str, Any], images: Path, prompts: Mapping[str, str]
) -> dict[str, float]:
    """mAP50 and mAP with all of the set's names asked at once; `prompts` says what to ask in place of a
    name."""
    asked = {name: (prompt,) for name, prompt in prompts.items()}
    evaluation = evaluate_detector(detector, read_coco(coco, images), prompts=asked)
    return {
        "map50": round(evaluation.map50, 4),
        "map": round(evaluation.map, 4),
        "images": evaluation.images,
        "names": len(coco["categories"]),
        "names with boxes": len(evaluation.labels),
    }


def only(coco: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The annotations of some categories, and the images that hold one."""
    categories = [category for category in coco["categories"] if category["name"] in names]
    kept = {category["id"] for category in categories}
    annotations = [annotation for annotation in coco["annotations"] if annotation["category_id"] in kept]
    holding = {annotation["image_id"] for annotation in annotations}
    images = [image for image in coco["images"] if image["id"] in holding]
    return {"categories": categories, "annotations": annotations, "images": images}


def forgotten_animals(detector: Detector, coco: Mapping[str, Any], images: Path) -> dict[str, Any]:
    """AP50 of each animal after its names were erased from the memory, and of a control name on the same
    photos.

    What is left comes from likeness to other names. Were the detector to understand unknown names, the right
    name would do clearly better than the control's.
    """
    proposals = detector.model.proposals
    assert isinstance(proposals, DenseProposals)
    memory = proposals.names
    before = memory.names.clone(), memory.classes.clone()
    order = [category["name"] for category in coco["categories"]]
    rows = {}
    for animal, control in CONTROLS.items():
        forgotten = memory.classes == order.index(animal)
        memory.names[forgotten] = 0.0
        memory.classes[forgotten] = memory.num_classes
        scores = {}
        for kind, asked in (("own name", animal), ("control", control)):
            evaluation = evaluate_detector(
                detector, read_coco(only(coco, [animal]), images), prompts={animal: (asked,)}
            )
            scores[kind] = round(evaluation.map50, 4)
        memory.names.copy_(before[0])
        memory.classes.copy_(before[1])
        rows[animal] = scores | {"control name": control}
    mean = {
        kind: round(statistics.mean(row[kind] for row in rows.values()), 4)
        for kind in ("own name", "control")
    }
    return {"mean ap50": mean, "animals": rows}


def outside_names(detector: Detector, data: Path) -> dict[str, float]:
    """The share of photos of an unknown concept on which its name, and a control's, is found at the default
    threshold."""
    photos = {
        entry["concept"]: entry["file_name"]
        for entry in json.loads((data / "photos.json").read_text("utf-8"))
    }
    own, control, count = 0, 0, 0
    for concept, other in OUTSIDE.items():
        if concept in photos:
            found = detector(data / "photos" / photos[concept], labels=[concept, other])
            own += concept in found.labels
            control += other in found.labels
            count += 1
    return {"photos": count, "own name": round(own / count, 3), "control": round(control / count, 3)}


def latency(detector: Detector, images: Path) -> float:
    """Median seconds of ten calls on one 640x480 photo with ten labels, text features cached after the
    first."""
    photo = images / "000000000009.jpg"
    labels = ["person", "bowl", "orange", "broccoli", "cup", "fork", "dining table", "cat", "dog", "bottle"]
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        detector(photo, labels=labels)
        seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds[2:]), 3)


def table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| set | mAP50 | mAP |", "|---|---|---|"]
    lines += [f"| {name} | {r['map50']:.3f} | {r['map']:.3f} |" for name, r in results["sets"].items()]
    mean = results["forgotten animals"]["mean ap50"]
    lines.append(f"| animals whose names were erased, AP50: own name | {mean['own name']:.3f} | |")
    lines.append(f"| the same photos, another animal's name | {mean['control']:.3f} | |")
    if outside := results.get("names outside the vocabulary"):
        lines.append(
            f"| unknown concepts: share of photos with a box by their name | {outside['own name']} | |"
        )
        lines.append(f"| the same photos, another concept's name | {outside['control']} | |")
    lines.append(
        f"| seconds, 640x480 and 10 labels | {results['seconds for a 640x480 photo and 10 labels']} | |"
    )
    return "\n".join(lines)


def _recipe_names() -> Any:
    """The recipe's module of names, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("names", ROOT / "recipes" / "nano" / "names.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
