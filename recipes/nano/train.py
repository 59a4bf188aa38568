"""Trains what the embedded model adds to its detector: the decoder and its heads. The rest stays
as it is: the detector, the names, and the enhancer as it was drawn.

What the class heads learned is put back to zero at the end: on held-out images it raised all scores and
ordered nothing better (mAP 0.520 with it alone, as at step 0), and the detector's own scores mean something.
What is left, the refined boxes, is kept if it does clearly better on held-out images; else step 0 is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from names import phrases

from groundingml.inference import Detector
from groundingml.models import load_model, load_tokenizer
from groundingml.models.grounding_dino import GroundingDino
from groundingml.training import (
    Augmentation,
    CachedBackbone,
    ImageDataset,
    PromptConfig,
    StepReport,
    Trainer,
    TrainingConfig,
    evaluate_detector,
    load_weights,
    read_coco,
)

FROZEN = ("backbone", "text_encoder", "input_projections", "level_embedding", "enhancer", "proposals")
"""All that comes before the decoder: training it too takes ten times as long on a CPU."""
CLASS_HEADS = "heads.class_heads"
"""What is added to the detector's logits; these are calibrated, so it learns slowly."""

LEAST_GAIN = 0.01
"""In mAP on held-out images. Their boxes are the teacher's: of a gain of 0.005 nothing was left on photos
that people had boxed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--start", type=Path, required=True, help="folder of the model at step 0")
    parser.add_argument("--labels", type=Path, required=True, help="what pseudo_labels.py wrote")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--short-side", type=int, default=320, help="of training images, in pixels")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--class-factor", type=float, default=0.1, help="of the class heads; 0 freezes them")
    parser.add_argument("--evaluate-on", type=int, default=75, help="held-out images to evaluate on, at most")
    args = parser.parse_args()

    model, tokenizer = load_model(args.start), load_tokenizer(args.start)
    images = args.labels / "images"
    held_out = read_coco(args.labels / "held_out.json", images)
    held_out = replace(held_out, records=held_out.records[:: -(-len(held_out.records) // args.evaluate_on)])
    started = time.monotonic()

    def evaluate(model: GroundingDino) -> Mapping[str, float]:
        return evaluate_detector(Detector(model, tokenizer, device="cpu"), held_out).metrics()

    def tell(report: StepReport) -> None:
        if report.step % 50 == 0:
            losses = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
            print(
                f"step {report.step}/{report.total_steps}, {time.monotonic() - started:.0f} s, "
                f"loss {report.loss:.3f}: {losses}",
                flush=True,
            )

    config = TrainingConfig(
        epochs=args.epochs,
        batch_size=4,
        learning_rate=args.learning_rate,
        learning_rate_factors={CLASS_HEADS: args.class_factor} if args.class_factor else {},
        frozen=FROZEN if args.class_factor else (*FROZEN, CLASS_HEADS),
        warmup_steps=100,
        drop_epochs=(),
        averaging=0.99,
        evaluate_first=True,
        denoising=None,
        prompts=PromptConfig(max_negatives=10, synonyms=phrases()),
    )
    dataset = ImageDataset(
        read_coco(args.labels / "train.json", images),
        model.config,
        Augmentation(flip=0.0, shortest_sides=(args.short_side,)),
    )
    trainer = Trainer(
        model,
        tokenizer,
        CachedBackbone(dataset, model, dtype=torch.float16),
        config,
        args.run,
        evaluate=evaluate,
        metric="map",
        on_step=tell,
        on_evaluation=lambda numbers: print(dict(numbers), flush=True),
    )
    result = trainer.fit(resume=True)
    if result.best is None:
        raise SystemExit(f"{args.run} holds a run that was stopped before anything was measured")
    print(f"best: {load_weights(model, result.best)}")
    model.eval()
    with torch.no_grad():
        for parameter in model.heads.class_heads.parameters():
            parameter.zero_()
    reached = evaluate(model)
    print(f"without what the class heads learned: {dict(reached)}")
    begun = result.history[0]
    if reached["map"] < begun["map"] + LEAST_GAIN:
        print(f"too little was gained ({begun['map']:.4f} to {reached['map']:.4f} mAP): keeping step 0")
        model = load_model(args.start)
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
