"""What a run is told, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from groundingml.training.adapters import AdapterConfig
from groundingml.training.denoising import DenoisingConfig
from groundingml.training.dense_losses import DenseLossConfig
from groundingml.training.losses import LossConfig
from groundingml.training.prompts import PromptConfig

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
SCHEDULES = ("drop", "cosine")


@dataclass(frozen=True)
class TrainingConfig:
    """What decides a run, beside the model and the data. The defaults fine-tune with the encoders frozen.

    frozen: parts that keep their weights and stay in evaluation mode ("backbone", "text_encoder.bert").
    adapters: low-rank adapters that are trained in place of the layers they sit on; None: the layers
    themselves. learning_rate_factors: part -> factor on the learning rate, for example {"backbone": 0.1}.
    batch_size: images in one forward pass of one process; accumulate: so many of them make one optimiser
    step. How a step's images are split over passes and processes does not change what it does.
    warmup_steps: optimiser steps until the full rate. schedule: "drop": after each of drop_epochs the rate
    falls by drop_factor; "cosine": it falls evenly to nearly nothing at the last epoch.
    averaging: decay of an exponential moving average of the weights, which is then what is evaluated and kept
    as best; None: none. checkpoint_steps: write a checkpoint every so many optimiser steps besides after each
    epoch.
    evaluate_epochs: evaluate after every so many epochs, and after the last; evaluate_first: also before the
    first step, so that the best weights may be those that the run began with.
    precision: "auto" is bfloat16 on a GPU that has it, float16 on one that has not, and float32 on the CPU.
    dense: train only a taught head, with its losses (see `dense_losses`), instead of matching queries to
    boxes.
    """

    epochs: int = 20
    batch_size: int = 2
    accumulate: int = 1
    learning_rate: float = 1e-4
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 1e-4
    frozen: tuple[str, ...] = ("backbone", "text_encoder.bert")
    adapters: AdapterConfig | None = None
    warmup_steps: int = 50
    schedule: str = "drop"
    drop_epochs: tuple[int, ...] = (15,)
    drop_factor: float = 0.1
    clip_norm: float = 0.1
    averaging: float | None = None
    precision: str = "auto"
    seed: int = 0
    workers: int = 0
    checkpoint_steps: int | None = None
    evaluate_epochs: int = 1
    evaluate_first: bool = False
    losses: LossConfig = field(default_factory=LossConfig)
    dense: DenseLossConfig | None = None
    denoising: DenoisingConfig | None = field(default_factory=DenoisingConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "evaluate_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.averaging is not None and not 0 < self.averaging < 1:
            raise ValueError(f"averaging is a decay between 0 and 1, got {self.averaging}")
        for name, choices in (("precision", PRECISIONS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class StepReport:
    """One optimiser step: its number from 1, the epoch as a fraction, the step's losses."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    losses: dict[str, float]
    gradient_norm: float
    learning_rate: float


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    finished: False when it was asked to stop; ``fit`` with resume goes on from ``last``. history: each
    evaluation's numbers, with its epoch. best: the weights with the highest metric, None without evaluation.
    """

    finished: bool
    steps: int
    history: list[dict[str, float]]
    last: Path
    best: Path | None
