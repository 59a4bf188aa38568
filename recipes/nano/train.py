"""Trains what the embedded model adds to its detector: enhancer, proposal heads, decoder. The rest stays as
it is.

Keeps the weights that do best on held-out photos, which may be those it began with.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from names import phrases

from groundingml.inference import Detector
from groundingml.models import load_model, load_tokenizer
from groundingml.models.grounding_dino import GroundingDino
from groundingml.training import (
    Augmentation,
    CocoAnnotations,
    CocoDataset,
    PromptConfig,
    StepReport,
    Trainer,
    TrainingConfig,
    evaluate_detector,
    load_weights,
    read_coco,
)

FROZEN = ("backbone", "text_encoder.bert", "proposals.detector")
CONCEPT_NEGATIVES = 40


def training_annotations(labels: Path, images: Path) -> CocoAnnotations:
    """The pseudo-labels; of the hundreds of concepts, each photo is told only some that it lacks."""
    content = json.loads(labels.read_text("utf-8"))
    known = [category["id"] for category in content["categories"][: len(phrases())]]
    concepts = [category["id"] for category in content["categories"][len(phrases()) :]]
    rng = random.Random(0)
    for image in content["images"]:
        image["neg_category_ids"] = known + rng.sample(concepts, min(CONCEPT_NEGATIVES, len(concepts)))
    return read_coco(content, images)


def held_out_annotations(labels: Path, images: Path, limit: int | None) -> CocoAnnotations:
    """The teacher's boxes of its own classes on held-out photos."""
    content: dict[str, Any] = json.loads(labels.read_text("utf-8"))
    content["categories"] = content["categories"][: len(phrases())]
    known = {category["id"] for category in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in known]
    boxed = {annotation["image_id"] for annotation in content["annotations"]}
    content["images"] = [image for image in content["images"] if image["id"] in boxed][:limit]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    return read_coco(content, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--start", type=Path, required=True, help="folder of the model at step 0")
    parser.add_argument("--labels", type=Path, required=True, help="folder with train.json and held_out.json")
    parser.add_argument("--photos", type=Path, required=True, help="folder of the images")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--short-side", type=int, default=320, help="of training photos, in pixels")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--evaluate-on", type=int, default=120, help="held-out photos to evaluate on")
    args = parser.parse_args()

    model, tokenizer = load_model(args.start), load_tokenizer(args.start)
    held_out = held_out_annotations(args.labels / "held_out.json", args.photos, args.evaluate_on)

    def evaluate(model: GroundingDino) -> Mapping[str, float]:
        return evaluate_detector(Detector(model, tokenizer, device="cpu"), held_out).metrics()

    begun = evaluate(model)
    print(f"step 0 on {len(held_out.records)} held-out photos: {begun}", flush=True)
    started = time.monotonic()

    def tell(report: StepReport) -> None:
        if report.step % 50 == 0:
            print(
                f"step {report.step}/{report.total_steps}, {time.monotonic() - started:.0f} s, "
                f"loss {report.loss:.3f}",
                flush=True,
            )

    known = phrases()
    config = TrainingConfig(
        epochs=args.epochs,
        batch_size=4,
        learning_rate=args.learning_rate,
        frozen=FROZEN,
        drop_epochs=(args.epochs - 1,),
        averaging=0.99,
        denoising=None,
        prompts=PromptConfig(max_negatives=40, synonyms=known),
    )
    dataset = CocoDataset(
        training_annotations(args.labels / "train.json", args.photos),
        model.config,
        Augmentation(flip=0.5, shortest_sides=(args.short_side,)),
    )
    trainer = Trainer(
        model,
        tokenizer,
        dataset,
        config,
        args.run,
        evaluate=evaluate,
        metric="map",
        on_step=tell,
        on_evaluation=lambda numbers: print(dict(numbers), flush=True),
    )
    torch.manual_seed(0)
    result = trainer.fit(resume=True)
    assert result.best is not None
    reached = load_weights(model, result.best)
    if reached["map"] < begun["map"]:
        print(f"training did not help ({reached['map']:.3f} < {begun['map']:.3f}); keeping step 0")
        model = load_model(args.start)
    model.eval().save_pretrained(args.out)


if __name__ == "__main__":
    main()
