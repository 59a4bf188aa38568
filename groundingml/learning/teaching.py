"""A base model and corrected images in, a taught model's folder out: how a run calls the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundingml.inference import Label
from groundingml.training import CocoAnnotations, StepReport


@dataclass(frozen=True)
class Lesson:
    """What to train: examples with their labels' names, what is asked for each label, the base model, and the
    recipe with the fields that differ from its defaults."""

    examples: CocoAnnotations
    labels: list[Label]
    base: str
    recipe: str
    options: dict[str, Any]
    device: str


def teach(
    lesson: Lesson, folder: Path, on_step: Callable[[StepReport], None], should_stop: Callable[[], bool]
) -> Path | None:
    """Train in ``folder``, going on from its last checkpoint if there is one; the folder of the taught model.

    None when it was asked to stop before the end; calling it again goes on.
    """
    from groundingml.inference.devices import resolve_device
    from groundingml.models import load_model, load_tokenizer
    from groundingml.models.checkpoints.save import save_pretrained
    from groundingml.models.grounding_dino import GroundingDino
    from groundingml.training import (
        Augmentation,
        CachedBackbone,
        CocoDataset,
        Trainer,
        TrainingConfig,
        load_weights,
    )

    model = load_model(lesson.base)
    if not isinstance(model, GroundingDino):
        raise ValueError(f"{lesson.base} is of a family that cannot be trained here")
    model.to(resolve_device(lesson.device))
    tokenizer = load_tokenizer(lesson.base)
    dataset = CocoDataset(lesson.examples, model.config, Augmentation())
    config = TrainingConfig(**{"epochs": 10, "checkpoint_steps": 20, **lesson.options})

    def step(report: StepReport) -> None:
        on_step(report)
        if should_stop():
            raise InterruptedError

    trainer = Trainer(model, tokenizer, CachedBackbone(dataset, model), config, folder, on_step=step)
    try:
        result = trainer.fit(resume=True)
    except InterruptedError:
        return None
    if not result.finished:
        return None
    load_weights(model, result.last)
    save_pretrained(model, folder / "model", tokenizer)
    return folder / "model"
