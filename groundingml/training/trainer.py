"""The training loop: one reader, top to bottom. What it can be told stands in TrainingConfig."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundingml.inference.prompts import Tokenizer
from groundingml.models.grounding_dino import GroundingDino, ImageFeatures, TextFeatures
from groundingml.training.batches import Batch, epoch_batches
from groundingml.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from groundingml.training.dataset import TrainingSet
from groundingml.training.denoising import DenoisingConfig, make_denoising
from groundingml.training.feature_cache import CachedBackbone
from groundingml.training.interruption import StopRequest
from groundingml.training.losses import LossConfig, grounding_losses
from groundingml.training.optimization import AveragedWeights, freeze, learning_rate_factor, parameter_groups
from groundingml.training.phrase_cache import PhraseCache
from groundingml.training.prompts import PromptConfig, PromptSampler


@dataclass(frozen=True)
class TrainingConfig:
    """What decides a run, beside the model and the data. The defaults fine-tune with the encoders frozen.

    frozen: parts that keep their weights and stay in evaluation mode ("backbone", "text_encoder.bert").
    learning_rate_factors: part -> factor on the learning rate, for example {"backbone": 0.1}.
    accumulate: batches whose gradients are averaged into one optimiser step.
    warmup_steps: optimiser steps until the full rate; drop_epochs: after these many epochs it falls by
    drop_factor.
    averaging: decay of an exponential moving average of the weights, which is then what is evaluated and kept
    as best; None: none. checkpoint_steps: write a checkpoint every so many optimiser steps besides after each
    epoch.
    evaluate_epochs: evaluate after every so many epochs, and after the last; evaluate_first: also before the
    first step, so that the best weights may be those that the run began with.
    """

    epochs: int = 20
    batch_size: int = 2
    accumulate: int = 1
    learning_rate: float = 1e-4
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 1e-4
    frozen: tuple[str, ...] = ("backbone", "text_encoder.bert")
    warmup_steps: int = 50
    drop_epochs: tuple[int, ...] = (15,)
    drop_factor: float = 0.1
    clip_norm: float = 0.1
    averaging: float | None = None
    seed: int = 0
    workers: int = 0
    checkpoint_steps: int | None = None
    evaluate_epochs: int = 1
    evaluate_first: bool = False
    losses: LossConfig = field(default_factory=LossConfig)
    denoising: DenoisingConfig | None = field(default_factory=DenoisingConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "evaluate_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.averaging is not None and not 0 < self.averaging < 1:
            raise ValueError(f"averaging is a decay between 0 and 1, got {self.averaging}")


@dataclass(frozen=True)
class StepReport:
    """One optimiser step: its number from 1, the epoch as a fraction, losses averaged over its batches."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    losses: dict[str, float]
    gradient_norm: float
    learning_rate: float


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    finished: False when it was asked to stop; ``fit`` with resume goes on from ``last``. history: each
    evaluation's numbers, with its epoch. best: the weights with the highest metric, None without evaluation.
    """

    finished: bool
    steps: int
    history: list[dict[str, float]]
    last: Path
    best: Path | None


class Trainer:
    """Trains a model on a training set.

    folder: where last.pt (to resume) and best.pt (weights) are written. evaluate: called with the model in
    evaluation mode, returns numbers; ``metric`` names the one that says which weights are best (higher is
    better).
    on_step, on_evaluation: for progress; the trainer itself prints nothing.
    """

    def __init__(
        self,
        model: GroundingDino,
        tokenizer: Tokenizer,
        dataset: TrainingSet,
        config: TrainingConfig,
        folder: str | Path,
        *,
        evaluate: Callable[[GroundingDino], Mapping[str, float]] | None = None,
        metric: str = "map50",
        on_step: Callable[[StepReport], None] | None = None,
        on_evaluation: Callable[[Mapping[str, float]], None] | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("there is no image to train on")
        if isinstance(dataset, CachedBackbone) and ("backbone" not in config.frozen or config.workers > 0):
            raise ValueError(
                "the training set holds the backbone's maps, computed in this process: put 'backbone' among "
                "the frozen parts and use workers=0, or train on the data set itself"
            )
        self.model = model
        self.dataset = dataset
        self.config = config
        self.folder = Path(folder)
        self.evaluate = evaluate
        self.metric = metric
        self.on_step = on_step
        self.on_evaluation = on_evaluation
        self.device = next(model.parameters()).device
        self.prompts = PromptSampler(dataset.names, tokenizer, model.config, config.prompts)
        self._frozen_modules = freeze(model, config.frozen)
        groups = parameter_groups(
            model, config.learning_rate, config.weight_decay, config.learning_rate_factors
        )
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(groups)
        self._full_rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._average = None if config.averaging is None else AveragedWeights(model, config.averaging)
        bert_is_frozen = not any(p.requires_grad for p in model.text_encoder.bert.parameters())
        self._phrases = PhraseCache(model.text_encoder) if bert_is_frozen else None
        self._noise = torch.Generator()
        self._epoch = 0
        self._step_in_epoch = 0
        self._step = 0
        self._best = float("-inf")
        self._history: list[dict[str, float]] = []

    @property
    def steps_per_epoch(self) -> int:
        batches = -(-len(self.dataset) // self.config.batch_size)
        return -(-batches // self.config.accumulate)

    def fit(self, resume: bool = False) -> TrainingResult:
        """Train to the end, or until Ctrl-C or SIGTERM, upon which a checkpoint is written first.

        resume: go on from last.pt in the folder if there is one. On the CPU, with the same number of threads,
        a run that was stopped and resumed ends with the same weights, bit for bit, as one that was not. Seeds
        torch's global generator.
        Raises CheckpointError when last.pt belongs to another run; FloatingPointError when training diverges.
        """
        torch.manual_seed(self.config.seed)
        self._noise.manual_seed(self.config.seed)
        if resume and self._last.is_file():
            self._restore(read_checkpoint(self._last))
        self._set_training_mode()
        with StopRequest() as stop:
            if self.config.evaluate_first and self._step == 0:
                self._evaluate()
            while self._epoch < self.config.epochs:
                for batches in self._steps_left():
                    self._train_step(batches)
                    if stop.requested:
                        self._save()
                        return self._result(finished=False)
                    if self.config.checkpoint_steps and self._step % self.config.checkpoint_steps == 0:
                        self._save()
                self._epoch += 1
                self._step_in_epoch = 0
                if self._epoch % self.config.evaluate_epochs == 0 or self._epoch == self.config.epochs:
                    self._evaluate()
                self._save()
                if stop.requested and self._epoch < self.config.epochs:
                    return self._result(finished=False)
        return self._result(finished=True)

    def _steps_left(self) -> Iterator[list[Batch]]:
        """The batches of each optimiser step that is left in this epoch."""
        config = self.config
        first = self._step_in_epoch * config.accumulate
        batches = epoch_batches(
            self.dataset, self.prompts, config.batch_size, config.seed, self._epoch, first, config.workers
        )
        while chunk := list(islice(batches, config.accumulate)):
            yield chunk

    def _train_step(self, batches: list[Batch]) -> None:
        factor = learning_rate_factor(
            self._step,
            self.config.warmup_steps,
            [epoch * self.steps_per_epoch for epoch in self.config.drop_epochs],
            self.config.drop_factor,
        )
        for group, rate in zip(self._optimizer.param_groups, self._full_rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for batch in batches:
            losses = self.losses(batch.to(self.device))
            total = torch.stack(list(losses.values())).sum()
            (total / len(batches)).backward()
            # One wait for the GPU, not one for each loss.
            values = torch.stack(list(losses.values())).detach().tolist()
            for name, value in zip(losses, values, strict=True):
                sums[name] = sums.get(name, 0.0) + value / len(batches)
        norm = nn.utils.clip_grad_norm_(self._trained, self.config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {self._step + 1} is not finite: training has diverged. "
                "Lower the learning rate, or resume from the last good checkpoint."
            )
        self._optimizer.step()
        if self._average is not None:
            self._average.update(self.model)
        self._step += 1
        self._step_in_epoch += 1
        if self.on_step is not None:
            self.on_step(
                StepReport(
                    step=self._step,
                    total_steps=self.steps_per_epoch * self.config.epochs,
                    epoch=self._epoch + self._step_in_epoch / self.steps_per_epoch,
                    loss=sum(sums.values()),
                    losses=sums,
                    gradient_norm=float(norm),
                    learning_rate=self.config.learning_rate * factor,
                )
            )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Forward one batch on the model's device; every weighted loss by name (see ``grounding_losses``)."""
        image = self._encode_image(batch)
        text = self._encode_text(batch)
        plan = None
        if self.config.denoising is not None:
            queries = min(self.model.config.num_queries, image.tokens.shape[1])
            plan = make_denoising(batch.targets, text.tokens, queries, self.config.denoising, self._noise)
        output = self.model.ground_training(image, text, None if plan is None else plan.queries)
        return grounding_losses(output, batch.targets, batch.attention_mask.bool(), plan, self.config.losses)

    def _encode_image(self, batch: Batch) -> ImageFeatures:
        if batch.maps is not None:
            # Even a mask that is all True says something here: maps may cover more than the image.
            return self.model.encode_maps(batch.maps, batch.pixel_mask)
        mask = None if bool(batch.pixel_mask.all()) else batch.pixel_mask
        assert batch.pixel_values is not None
        return self.model.encode_image(batch.pixel_values, mask)

    def _encode_text(self, batch: Batch) -> TextFeatures:
        if self._phrases is not None:
            return self._phrases.encode(batch.input_ids, batch.attention_mask)
        return self.model.encode_text(batch.input_ids, batch.attention_mask)

    def _set_training_mode(self) -> None:
        self.model.train()
        for module in self._frozen_modules:
            module.eval()

    def _evaluate(self) -> None:
        """Measure the weights (their average, if there is one), note the numbers, keep the best weights."""
        if self.evaluate is None:
            return
        if self._average is not None:
            self._average.swap(self.model)
        try:
            self.model.eval()
            with torch.no_grad(), torch.random.fork_rng():  # evaluation must not change what is trained next
                numbers = {name: float(value) for name, value in self.evaluate(self.model).items()}
            if self.metric not in numbers:
                raise ValueError(
                    f"the evaluation returned {sorted(numbers)}, but not the metric {self.metric!r}"
                )
            if numbers[self.metric] > self._best:
                self._best = numbers[self.metric]
                write_checkpoint(
                    self.folder / "best.pt",
                    {"model": self.model.state_dict(), "epoch": self._epoch, "metrics": numbers},
                )
        finally:
            if self._average is not None:
                self._average.swap(self.model)
            self._set_training_mode()
        self._history.append({"epoch": self._epoch, **numbers})
        if self.on_evaluation is not None:
            self.on_evaluation(self._history[-1])

    @property
    def _last(self) -> Path:
        return self.folder / "last.pt"

    def _save(self) -> None:
        write_checkpoint(
            self._last,
            {
                "identity": self._identity(),
                "model": self.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "average": None if self._average is None else self._average.state_dict(),
                "epoch": self._epoch,
                "step_in_epoch": self._step_in_epoch,
                "step": self._step,
                "best": self._best,
                "history": self._history,
                "noise": self._noise.get_state(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        before, now = json.loads(state["identity"]), json.loads(self._identity())
        changed = [
            f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in now if before.get(key) != now[key]
        ]
        if changed:
            raise CheckpointError(
                f"{self._last} is of another run, so it cannot be resumed ({'; '.join(changed)}). "
                "Use the same settings, or another folder."
            )
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._epoch = state["epoch"]
        self._step_in_epoch = state["step_in_epoch"]
        self._step = state["step"]
        self._best = state["best"]
        self._history = state["history"]
        self._noise.set_state(state["noise"])
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    def _identity(self) -> str:
        """What must not change between a run and its continuation (its length and how it is watched may)."""
        settings = asdict(self.config)
        for free in ("epochs", "workers", "checkpoint_steps", "evaluate_epochs", "evaluate_first"):
            del settings[free]
        return json.dumps(
            {**settings, "images": len(self.dataset), "names": self.dataset.names}, sort_keys=True
        )

    def _result(self, finished: bool) -> TrainingResult:
        best = self.folder / "best.pt"
        return TrainingResult(
            finished=finished,
            steps=self._step,
            history=list(self._history),
            last=self._last,
            best=best if self._history and best.is_file() else None,
        )


def load_weights(model: nn.Module, path: str | Path) -> dict[str, float]:
    """Put the weights of best.pt (or last.pt) into the model; return the metrics noted with them."""
    state = read_checkpoint(Path(path))
    model.load_state_dict(state["model"])
    metrics = state.get("metrics", {})
    return {name: float(value) for name, value in metrics.items()}
