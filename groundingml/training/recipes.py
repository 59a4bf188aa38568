"""How a model is fine-tuned: three recipes, each for large models, for GLIP, for those with dense proposals.

A recipe is everything about a run but the data and the model. Change one with `dataclasses.replace`:

>>> recipe = replace(recipe_for("lora", model), steps=1200)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from groundingml.models.glip import Glip
from groundingml.models.grounding_dino import GroundingDino
from groundingml.training.adapters import AdapterConfig
from groundingml.training.augmentation import Augmentation
from groundingml.training.config import TrainingConfig
from groundingml.training.denoising import DenoisingConfig
from groundingml.training.dense_losses import DenseLossConfig
from groundingml.training.prompts import PromptConfig
from groundingml.training.teaching import can_be_taught

NAMES = ("head", "lora", "full")
DEFAULT = "lora"


@dataclass(frozen=True)
class Recipe:
    """What is trained, how fast, for how long, and on which views of the images.

    steps: optimiser steps that the run should have; the number of epochs follows from the number of images
    and stays between ``epochs``' two numbers. batch_size, accumulate, learning_rate, learning_rate_factors,
    frozen, adapters, warmup_steps, clip_norm, averaging, dense, denoising: see TrainingConfig.
    augmentation: the views. cached_views: so many views of each image go through the frozen backbone once and
    are kept in memory; None: every step runs the backbone. replay_share: part of an epoch's images that comes
    from the replay, where there is one. max_negatives: names asked for that are not in the image, at most.
    """

    name: str
    summary: str
    steps: int
    epochs: tuple[int, int]
    batch_size: int
    learning_rate: float
    frozen: tuple[str, ...]
    adapters: AdapterConfig | None = None
    accumulate: int = 1
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    clip_norm: float = 0.1
    averaging: float | None = 0.998
    augmentation: Augmentation = field(default_factory=Augmentation)
    scales: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0)
    """Sizes at which images are looked at, relative to the model's own."""
    cached_views: int | None = None
    dense: DenseLossConfig | None = None
    denoising: DenoisingConfig | None = field(default_factory=DenoisingConfig)
    max_negatives: int = 85
    replay_share: float = 0.25
    evaluations: int = 5
    """How often a run with validation images is measured, at most."""
    checkpoint_steps: int | None = 50
    """A checkpoint is written after each epoch, and every so many steps."""
    precision: str = "auto"
    seed: int = 0

    def training_config(
        self, images: int, synonyms: Mapping[str, Sequence[str]] | None = None, processes: int = 1
    ) -> TrainingConfig:
        """The trainer's settings for a training set of so many images.

        synonyms: what to ask for instead of a name (see PromptConfig).
        """
        per_epoch = -(-images // (self.batch_size * self.accumulate * processes))
        least, most = self.epochs
        epochs = min(max(-(-self.steps // per_epoch), least), most)
        return TrainingConfig(
            epochs=epochs,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            learning_rate=self.learning_rate,
            learning_rate_factors=self.learning_rate_factors,
            weight_decay=self.weight_decay,
            frozen=self.frozen,
            adapters=self.adapters,
            warmup_steps=min(self.warmup_steps, max(epochs * per_epoch // 5, 1)),
            schedule="cosine",
            clip_norm=self.clip_norm,
            averaging=self.averaging,
            precision=self.precision,
            checkpoint_steps=self.checkpoint_steps,
            seed=self.seed,
            evaluate_epochs=max(-(-epochs // self.evaluations), 1),
            dense=self.dense,
            denoising=self.denoising,
            prompts=PromptConfig(
                max_negatives=self.max_negatives,
                all_negatives=1.0 if self.dense is not None else 0.5,
                synonyms=dict(synonyms or {}),
            ),
        )


_ENCODERS = ("backbone", "text_encoder")
_VIEWS = Augmentation(flip=0.5, crop=0.3, colour_change=0.2)

HEAD = Recipe(
    name="head",
    summary="the encoders are frozen; enhancer, decoder and heads learn",
    steps=2000,
    epochs=(5, 60),
    batch_size=2,
    learning_rate=1e-4,
    frozen=_ENCODERS,
    augmentation=_VIEWS,
)
LORA = Recipe(
    name="lora",
    summary="low-rank adapters on the attention of enhancer and decoder, and the heads, learn",
    steps=2000,
    epochs=(5, 60),
    batch_size=2,
    learning_rate=2e-4,
    learning_rate_factors={"heads": 0.25, "proposals": 0.25},
    frozen=_ENCODERS,
    adapters=AdapterConfig(),
    augmentation=_VIEWS,
)
FULL = Recipe(
    name="full",
    summary="everything learns, the encoders at a tenth of the rate; give it general images to replay",
    steps=4000,
    epochs=(5, 60),
    batch_size=2,
    accumulate=2,
    learning_rate=1e-4,
    learning_rate_factors={"backbone": 0.1, "text_encoder": 0.1},
    frozen=(),
    augmentation=_VIEWS,
)

GLIP_HEAD = replace(
    HEAD, summary="the encoders are frozen; pyramid, fused tower and head learn", denoising=None
)
GLIP_LORA = replace(
    GLIP_HEAD,
    name="lora",
    summary="as head, more slowly: convolutions make up GLIP's tower, which adapters of attention would miss",
    learning_rate=5e-5,
)
GLIP_FULL = replace(FULL, denoising=None)

_TAUGHT = "proposals.taught"
_BESIDE_TAUGHT = ("text_encoder", "input_projections", "level_embedding", "enhancer", "decoder", "heads")
_FIRST_HEAD = ("detector", "projection", "norm", "class_head", "box_head")
_BUT_TAUGHT = (*_BESIDE_TAUGHT, *(f"proposals.{part}" for part in _FIRST_HEAD))
_SMALL_VIEWS = Augmentation(flip=0.5, colour_change=0.15)

SMALL_LORA = Recipe(
    name="lora",
    summary="new names get a head of their own beside the first, which keeps what it knew",
    steps=800,
    epochs=(10, 150),
    batch_size=2,
    learning_rate=1e-3,
    weight_decay=0.05,
    frozen=("backbone", *_BUT_TAUGHT),
    clip_norm=30.0,
    averaging=0.99,
    augmentation=_SMALL_VIEWS,
    scales=(0.85, 1.0, 1.15),
    cached_views=6,
    dense=DenseLossConfig(),
    denoising=None,
)
"""The adapter of a model with dense proposals: a branch that only the taught names' own tokens open."""
SMALL_HEAD = replace(
    SMALL_LORA,
    name="head",
    summary="as lora, but what the new head sees is not adapted: quicker and less precise",
    frozen=(*SMALL_LORA.frozen, f"{_TAUGHT}.laterals"),
)
SMALL_FULL = replace(
    SMALL_LORA,
    name="full",
    summary="as lora, and the backbone learns too: the names known before suffer",
    frozen=_BUT_TAUGHT,
    learning_rate_factors={"backbone": 0.1},
    augmentation=replace(_SMALL_VIEWS, crop=0.3),
    cached_views=None,
)

LARGE_RECIPES = {recipe.name: recipe for recipe in (HEAD, LORA, FULL)}
GLIP_RECIPES = {recipe.name: recipe for recipe in (GLIP_HEAD, GLIP_LORA, GLIP_FULL)}
SMALL_RECIPES = {recipe.name: recipe for recipe in (SMALL_HEAD, SMALL_LORA, SMALL_FULL)}


def recipe_for(name: str, model: GroundingDino | Glip) -> Recipe:
    """The recipe of that name for a model; "auto" is the default one.

    Raises:
        ValueError: no such recipe.
    """
    recipes = SMALL_RECIPES if can_be_taught(model) else LARGE_RECIPES
    if isinstance(model, Glip):
        recipes = GLIP_RECIPES
    name = DEFAULT if name == "auto" else name
    if name not in recipes:
        raise ValueError(f"there is no recipe {name!r}; choose one of {', '.join(NAMES)}")
    return recipes[name]


def changed(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """The recipe with fields that differ; a whole number for ``epochs`` means exactly so many, and ``steps``
    given here are kept even if they make less than the recipe's least epochs.

    Raises:
        ValueError: a field that recipes do not have.
    """
    known = [f.name for f in fields(recipe)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"recipes have no {', '.join(unknown)}; they have {', '.join(known)}")
    values = dict(options)
    if isinstance(values.get("epochs"), int):
        values["epochs"] = (values["epochs"], values["epochs"])
    elif "steps" in values and "epochs" not in values:
        values["epochs"] = (1, recipe.epochs[1])
    return replace(recipe, **values)
