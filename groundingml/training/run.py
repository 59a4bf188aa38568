"""From annotated images to a version of the model: the whole of a fine-tuning run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from groundingml.inference import Detector
from groundingml.inference.devices import resolve_device
from groundingml.inference.prompts import Tokenizer
from groundingml.models import checkpoint_digest, load_model, load_tokenizer
from groundingml.models.checkpoints.save import save_pretrained
from groundingml.models.glip import Glip
from groundingml.models.grounding_dino import GroundingDino
from groundingml.models.nanodet import NanoDet
from groundingml.training.adapters import merge_adapters
from groundingml.training.annotations import Annotations
from groundingml.training.config import StepReport
from groundingml.training.dataset import ImageDataset, TrainingSet
from groundingml.training.distributed import joined_processes, own_device
from groundingml.training.evaluation import evaluate_detector
from groundingml.training.feature_cache import CachedBackbone
from groundingml.training.mixture import Mixture
from groundingml.training.recipes import DEFAULT, Recipe, changed, recipe_for
from groundingml.training.replay import GENERAL_NAMES, own_answers, without
from groundingml.training.teaching import can_be_taught, teach_names
from groundingml.training.trainer import Trainer, load_weights

MOST_CACHED_BYTES = 2 << 30
"""Of backbone maps kept in memory; of more images fewer views are kept, or none."""

PROVENANCE = "training.json"
"""File of a version's folder that says what it was made of."""


@dataclass(frozen=True)
class Callbacks:
    """What a run tells while it goes on; it prints nothing itself.

    on_stage: a sentence about what begins now. on_step: after each optimiser step. on_evaluation: the
    numbers of the validation images, with their epoch.
    """

    on_stage: Callable[[str], None] | None = None
    on_step: Callable[[StepReport], None] | None = None
    on_evaluation: Callable[[Mapping[str, float]], None] | None = None

    def stage(self, text: str) -> None:
        if self.on_stage is not None:
            self.on_stage(text)


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    finished: False when it was asked to stop; the same call with ``resume`` goes on. version: the folder of
    the trained model, which `Detector.from_pretrained` loads; None unless finished. history: the validation
    numbers of each evaluation. steps: optimiser steps done. seconds: that this call took.
    """

    finished: bool
    version: Path | None
    history: list[dict[str, float]]
    steps: int
    seconds: float


def train_from_dataset(
    examples: Annotations,
    folder: str | Path,
    recipe: Recipe | str = DEFAULT,
    model_source: str | Path = "nano",
    *,
    options: Mapping[str, Any] | None = None,
    validation: Annotations | None = None,
    replay: Annotations | Sequence[Path] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    run_folder: str | Path | None = None,
    device: str | torch.device = "auto",
    workers: int = 0,
    callbacks: Callbacks | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = False,
) -> TrainingResult:
    """Fine-tune a model on annotated images and write the new version to ``folder``.

    Args:
        examples: what to learn. Images without boxes teach what is not there.
        folder: of the version; written whole or not at all, at the end.
        recipe: a name (see `recipes`) or a Recipe.
        model_source: what `load_model` takes; a version of an earlier run too.
        options: fields of the recipe that are to differ, as `{"steps": 300}`.
        validation: images to measure on, never trained on; the best of the measured weights are kept. Without
            it the weights at the end are.
        replay: general images, annotated, or files of images that the model itself then answers before
        training,
            so that what it knew is asked for again. A model with dense proposals needs none: what it learns
            has a head of its own, and images only show it what the new names are not.
        synonyms: what to ask for instead of a name, if not the name itself.
        run_folder: of the checkpoints; by default `checkpoints` in ``folder``, removed at the end.
        workers: processes that prepare images.
        resume: go on from the run folder's last checkpoint, if there is one.

    Under torchrun every process calls this with the same arguments; the first one writes.

    Raises:
        CheckpointError: the model cannot be loaded, the run folder is another run's, or the disk is full.
        ValueError: nothing to learn from.
        PromptError: a name that the model's vocabulary cannot express.
        FloatingPointError: training diverged.
    """
    began = time.monotonic()
    callbacks = callbacks or Callbacks()
    folder = Path(folder)
    checkpoints = Path(run_folder) if run_folder is not None else folder / "checkpoints"
    place = own_device(resolve_device(device))
    _check_examples(examples)
    with joined_processes(place) as processes:
        callbacks.stage(f"loading {model_source}")
        tokenizer = load_tokenizer(model_source)
        model = load_model(model_source)
        model.to(place)
        recipe = recipe_for(recipe, model) if isinstance(recipe, str) else recipe
        recipe = changed(recipe, options or {})
        asked = {name: tuple((synonyms or {}).get(name) or (name,)) for name in examples.names}
        general = _replay(replay, recipe, model, tokenizer, examples, callbacks)
        if recipe.dense is not None and isinstance(model, GroundingDino):
            torch.manual_seed(recipe.seed)  # new names begin with random numbers
            model = teach_names(model, tokenizer, [text for texts in asked.values() for text in texts])
        dataset = _dataset(examples, general, model, recipe)
        config = replace(
            recipe.training_config(len(dataset), asked, processes.count),
            workers=0 if recipe.cached_views is not None else workers,
        )

        def evaluate(model: GroundingDino | Glip) -> Mapping[str, float]:
            assert validation is not None
            callbacks.stage(f"measuring on {len(validation.records)} images")
            detector = Detector(model, tokenizer, device=place)
            return evaluate_detector(detector, validation, prompts=asked).metrics()

        trainer = Trainer(
            model,
            tokenizer,
            dataset,
            config,
            checkpoints,
            evaluate=evaluate if validation is not None else None,
            on_step=callbacks.on_step,
            on_evaluation=callbacks.on_evaluation,
            should_stop=should_stop,
            processes=processes,
        )
        callbacks.stage(f"training on {len(examples.records)} images, recipe {recipe.name}")
        fitted = trainer.fit(resume)
        if not fitted.finished:
            return TrainingResult(False, None, fitted.history, fitted.steps, time.monotonic() - began)
        if processes.is_first:
            if fitted.best is not None:
                load_weights(model, fitted.best)
            else:
                trainer.keep_average()
            callbacks.stage(f"writing {folder}")
            merge_adapters(model)
            seconds = time.monotonic() - began
            _write(model, tokenizer, folder, recipe, model_source, examples, fitted.history, seconds)
            if run_folder is None:
                shutil.rmtree(checkpoints, ignore_errors=True)
        processes.wait()
        return TrainingResult(True, folder, fitted.history, fitted.steps, time.monotonic() - began)


def _check_examples(examples: Annotations) -> None:
    if not examples.records:
        raise ValueError("there is no image to train on")
    if not any(record.boxes_xyxy for record in examples.records):
        raise ValueError("no image has a box: there is nothing to learn")


def _replay(
    replay: Annotations | Sequence[Path] | None,
    recipe: Recipe,
    model: GroundingDino | Glip,
    tokenizer: Tokenizer,
    examples: Annotations,
    callbacks: Callbacks,
) -> Annotations | None:
    """General images with what the model is to go on saying about them."""
    taught = recipe.dense is not None
    if isinstance(replay, Annotations):
        if not taught:
            return without(replay, examples.names)
        replay = [record.path for record in replay.records]  # only what the taught names are not
    if replay is None:
        if taught:
            return None
        replay = [record.path for record in examples.records]
    known = [name.casefold() for name in examples.names]
    names = examples.names if taught else [name for name in GENERAL_NAMES if name not in known]
    callbacks.stage(f"asking the model about {len(replay)} images to replay")
    return own_answers(Detector(model, tokenizer, device=_device_of(model)), replay, names)


def _dataset(
    examples: Annotations, general: Annotations | None, model: GroundingDino | Glip, recipe: Recipe
) -> TrainingSet:
    sides = tuple(round(model.config.image_size[0] * scale) for scale in recipe.scales)
    augmentation = replace(recipe.augmentation, shortest_sides=sides)

    parts = [ImageDataset(examples, model.config, augmentation)]
    if general is not None and general.records and recipe.replay_share > 0:
        parts.append(ImageDataset(general, model.config, augmentation))
    sets: list[TrainingSet] = [*parts]
    if recipe.cached_views is not None and isinstance(model, GroundingDino):
        maps_of = None
        if recipe.dense is not None and isinstance(model.backbone, NanoDet):
            maps_of = model.backbone.stage_maps
        cached = CachedBackbone(parts[0], model, dtype=torch.float16, maps_of=maps_of)
        views = min(recipe.cached_views, MOST_CACHED_BYTES // (cached.view_bytes() * sum(map(len, parts))))
        if views >= 2:  # of one view alone nothing general is learned: then the backbone runs in every step
            sets = [
                CachedBackbone(part, model, dtype=torch.float16, views=views, maps_of=maps_of)
                for part in parts
            ]
    return sets[0] if len(sets) == 1 else Mixture(sets[0], sets[1], recipe.replay_share)


def _write(
    model: GroundingDino | Glip,
    tokenizer: Tokenizer,
    folder: Path,
    recipe: Recipe,
    model_source: str | Path,
    examples: Annotations,
    history: list[dict[str, float]],
    seconds: float,
) -> None:
    settings = asdict(recipe)
    provenance = {
        "base": {"source": str(model_source), "digest": checkpoint_digest(model_source)},
        "recipe": settings,
        "images": len(examples.records),
        "boxes": sum(len(record.boxes_xyxy) for record in examples.records),
        "names": examples.names,
        "history": history,
        "seconds": round(seconds, 1),
    }
    model.eval().cpu()
    save_pretrained(
        model,
        folder,
        tokenizer if hasattr(tokenizer, "save_pretrained") and not can_be_taught(model) else None,
        extra={PROVENANCE: json.dumps(provenance, indent=2) + "\n"},
    )


def _device_of(model: GroundingDino | Glip) -> torch.device:
    return next(model.parameters()).device
