"""A base model and corrected images in, a taught model's folder out: how a run calls the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundingml.inference import Label
from groundingml.training import Annotations, StepReport


@dataclass(frozen=True)
class Lesson:
    """What to train: examples with their labels' names, what is asked for each label, the base model, and the
    recipe with the fields that differ from its defaults."""

    examples: Annotations
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
    from groundingml.training import Callbacks, train_from_dataset

    result = train_from_dataset(
        lesson.examples,
        folder / "model",
        lesson.recipe,
        lesson.base,
        options=lesson.options,
        synonyms={label.name: label.texts for label in lesson.labels},
        run_folder=folder,
        device=lesson.device,
        callbacks=Callbacks(on_step=on_step),
        should_stop=should_stop,
        resume=True,
    )
    return result.version
