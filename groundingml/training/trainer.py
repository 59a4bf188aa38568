"""The training loop: one reader, top to bottom. What it can be told stands in TrainingConfig."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundingml.inference.prompts import Tokenizer
from groundingml.models.glip import Glip
from groundingml.models.grounding_dino import GroundingDino
from groundingml.training.adapters import add_adapters
from groundingml.training.anchor_objective import AnchorObjective
from groundingml.training.batches import Batch, epoch_steps
from groundingml.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from groundingml.training.config import FitResult, StepReport, TrainingConfig
from groundingml.training.dataset import TrainingSet
from groundingml.training.distributed import Processes
from groundingml.training.feature_cache import CachedBackbone
from groundingml.training.interruption import StopRequest
from groundingml.training.mixture import Mixture
from groundingml.training.objectives import DenseObjective, Objective, SetObjective
from groundingml.training.optimization import AveragedWeights, freeze, learning_rate_factor, parameter_groups
from groundingml.training.phrase_cache import PhraseCache
from groundingml.training.prompts import PromptSampler
from groundingml.training.step_counts import StepCounts


class Trainer:
    """Trains a model on a training set.

    folder: where last.pt (to resume) and best.pt (weights) are written. evaluate: called with the model in
    evaluation mode, returns numbers; ``metric`` names the one that says which weights are best (higher is
    better).
    on_step, on_evaluation: for progress; the trainer itself prints nothing. should_stop: asked after each
    step; True ends the run as Ctrl-C does. processes: who else trains (see `distributed`); only the first
    writes, evaluates and reports.
    """

    def __init__(
        self,
        model: GroundingDino | Glip,
        tokenizer: Tokenizer,
        dataset: TrainingSet,
        config: TrainingConfig,
        folder: str | Path,
        *,
        evaluate: Callable[[Any], Mapping[str, float]] | None = None,
        metric: str = "map50",
        on_step: Callable[[StepReport], None] | None = None,
        on_evaluation: Callable[[Mapping[str, float]], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        processes: Processes | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("there is no image to train on")
        if _is_cached(dataset) and ("backbone" not in config.frozen or config.workers > 0):
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
        self.should_stop = should_stop
        self.processes = processes or Processes()
        self.device = next(model.parameters()).device
        self.prompts = PromptSampler(dataset.names, tokenizer, model.config, config.prompts)
        torch.manual_seed(config.seed)  # adapters begin with random numbers
        self._frozen_modules = freeze(model, config.frozen)
        if config.adapters is not None:
            add_adapters(model, config.adapters)
        self.processes.share_weights(model)
        groups = parameter_groups(
            model, config.learning_rate, config.weight_decay, config.learning_rate_factors
        )
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(groups)
        self._full_rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._average = None if config.averaging is None else AveragedWeights(model, config.averaging)
        self._low_precision = low_precision(config.precision, self.device)
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self._low_precision is torch.float16 and self.device.type == "cuda"
        )
        self.objective = _objective(model, config)
        self._epoch = 0
        self._step_in_epoch = 0
        self._step = 0
        self._best = float("-inf")
        self._history: list[dict[str, float]] = []

    @property
    def steps_per_epoch(self) -> int:
        per_step = self.config.batch_size * self.config.accumulate * self.processes.count
        return -(-len(self.dataset) // per_step)

    def fit(self, resume: bool = False) -> FitResult:
        """Train to the end, or until Ctrl-C or SIGTERM, upon which a checkpoint is written first.

        resume: go on from last.pt in the folder if there is one. On the CPU, with the same number of threads,
        a run that was stopped and resumed ends with the same weights, bit for bit, as one that was not. Seeds
        torch's global generator.
        Raises CheckpointError when last.pt belongs to another run; FloatingPointError when training diverges.
        """
        torch.manual_seed(self.config.seed + self.processes.rank)
        if resume and self._last.is_file():
            self._restore(read_checkpoint(self._last))
        self._set_training_mode()
        with StopRequest() as stop:
            if self.config.evaluate_first and self._step == 0:
                self._evaluate()
            while self._epoch < self.config.epochs:
                for batches in self._steps_left():
                    self._train_step(batches)
                    if self._stops(stop):
                        self._save()
                        return self._result(finished=False)
                    if self.config.checkpoint_steps and self._step % self.config.checkpoint_steps == 0:
                        self._save()
                self._epoch += 1
                self._step_in_epoch = 0
                if self._epoch % self.config.evaluate_epochs == 0 or self._epoch == self.config.epochs:
                    self._evaluate()
                self._save()
                if self._stops(stop) and self._epoch < self.config.epochs:
                    return self._result(finished=False)
        return self._result(finished=True)

    def _steps_left(self) -> Iterator[list[Batch]]:
        """This process's batches of each optimiser step that is left in this epoch."""
        return epoch_steps(
            self.dataset,
            self.prompts,
            self.config.batch_size,
            self.config.accumulate,
            self.config.seed,
            self._epoch,
            self._step_in_epoch,
            self.config.workers,
            self.processes,
        )

    def _stops(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop; they all stop together."""
        asked = stop.requested or (self.should_stop is not None and self.should_stop())
        return self.processes.max([float(asked)]) == [1.0]

    def _train_step(self, batches: list[Batch]) -> None:
        factor = self._rate_factor()
        for group, rate in zip(self._optimizer.param_groups, self._full_rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.zero_grad(set_to_none=True)
        counts = self._count(batches)
        sums: dict[str, float] = {}
        for batch in batches:
            losses = self.losses(batch.to(self.device), counts)
            self._scaler.scale(torch.stack(list(losses.values())).sum()).backward()
            # One wait for the GPU, not one for each loss.
            values = torch.stack(list(losses.values())).detach().tolist()
            for name, value in zip(losses, values, strict=True):
                sums[name] = sums.get(name, 0.0) + value
        sums = self.processes.sum_by_name(sums)
        self.processes.sum_gradients(self._trained)
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._trained, self.config.clip_norm)
        if not torch.isfinite(norm) and not self._scaler.is_enabled():  # float16 skips a step that overflowed
            raise FloatingPointError(
                f"the gradient of step {self._step + 1} is not finite: training has diverged. "
                "Lower the learning rate, or resume from the last good checkpoint."
            )
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self.model)
        self._step += 1
        self._step_in_epoch += 1
        if self.on_step is not None and self.processes.is_first:
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

    def _rate_factor(self) -> float:
        drops = [epoch * self.steps_per_epoch for epoch in self.config.drop_epochs]
        total = self.config.epochs * self.steps_per_epoch if self.config.schedule == "cosine" else None
        return learning_rate_factor(
            self._step, self.config.warmup_steps, [] if total else drops, self.config.drop_factor, total
        )

    def _count(self, batches: list[Batch]) -> StepCounts:
        """About all images of the step, those of other processes too."""
        counts = [self.objective.counts(batch) for batch in batches]
        boxes, quality = (sum(count[i] for count in counts) for i in range(2))
        largest = max((len(t.boxes_cxcywh) for batch in batches for t in batch.targets), default=0)
        all_boxes, all_quality = self.processes.sum([boxes, quality])
        (all_largest,) = self.processes.max([float(largest)])
        return StepCounts(all_boxes, int(all_largest), all_quality)

    def losses(self, batch: Batch, step: StepCounts | None = None) -> dict[str, Tensor]:
        """Forward one batch on the model's device; every weighted loss by name (see `objectives`).

        step: what the batch is a part of; by default it is alone.
        """
        with self._autocast():
            return self.objective.losses(batch, step or self._count([batch]))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._low_precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, self._low_precision)

    def keep_average(self) -> None:
        """Leave the averaged weights in the model, where there are some: what a finished run is to give."""
        if self._average is not None:
            self._average.swap(self.model)
        self.model.eval()

    def _set_training_mode(self) -> None:
        self.model.train()
        for module in self._frozen_modules:
            module.eval()

    def _evaluate(self) -> None:
        """Measure the weights (their average, if there is one), note the numbers, keep the best weights."""
        if self.evaluate is None:
            return
        if self.processes.is_first:
            self._evaluate_here(self.evaluate)
        self.processes.wait()

    def _evaluate_here(self, evaluate: Callable[[Any], Mapping[str, float]]) -> None:
        if self._average is not None:
            self._average.swap(self.model)
        try:
            self.model.eval()
            with torch.no_grad(), torch.random.fork_rng():  # evaluation must not change what is trained next
                numbers = {name: float(value) for name, value in evaluate(self.model).items()}
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
        if not self.processes.is_first:
            return
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
                "scaler": self._scaler.state_dict(),
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
        self._scaler.load_state_dict(state["scaler"])
        if not self.processes.is_first:
            torch.manual_seed(
                self.config.seed + self.processes.rank + self._step
            )  # the saved one is the first's
            return
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    def _identity(self) -> str:
        """What must not change between a run and its continuation (its length and how it is watched may)."""
        settings = asdict(self.config)
        free = ["workers", "checkpoint_steps", "evaluate_epochs", "evaluate_first"]
        if self.config.schedule != "cosine":  # whose rates depend on the length
            free.append("epochs")
        for name in free:
            del settings[name]
        return json.dumps(
            {
                **settings,
                "images": len(self.dataset),
                "names": self.dataset.names,
                "processes": self.processes.count,
            },
            sort_keys=True,
        )

    def _result(self, finished: bool) -> FitResult:
        best = self.folder / "best.pt"
        return FitResult(
            finished=finished,
            steps=self._step,
            history=list(self._history),
            last=self._last,
            best=best if self._history and best.is_file() else None,
        )


def _objective(model: GroundingDino | Glip, config: TrainingConfig) -> Objective:
    if isinstance(model, Glip):
        return AnchorObjective(model, config.losses)
    bert_is_frozen = not any(p.requires_grad for p in model.text_encoder.bert.parameters())
    phrases = PhraseCache(model.text_encoder) if bert_is_frozen else None
    if config.dense is not None:
        return DenseObjective(model, phrases, config.dense)
    return SetObjective(model, phrases, config.losses, config.denoising)


def _is_cached(dataset: TrainingSet) -> bool:
    parts = (dataset.main, dataset.other) if isinstance(dataset, Mixture) else (dataset,)
    return any(isinstance(part, CachedBackbone) for part in parts)


def low_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype to compute in under autocast, or None for float32 (see TrainingConfig.precision)."""
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def load_weights(model: nn.Module, path: str | Path) -> dict[str, float]:
    """Put the weights of best.pt (or last.pt) into the model; return the metrics noted with them."""
    state = read_checkpoint(Path(path))
    model.load_state_dict(state["model"])
    metrics = state.get("metrics", {})
    return {name: float(value) for name, value in metrics.items()}
