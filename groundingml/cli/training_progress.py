"""How a training run goes, on stderr: a bar with losses and the time left on a terminal, else lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from groundingml.training import Callbacks, StepReport

LINE_EVERY_S = 30.0
_SMOOTHING = 0.05  # of the losses shown, which jump from step to step


class TrainingProgress:
    """A context manager whose callbacks go to `train_from_dataset`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if console.is_terminal and not console.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[losses]}"),
                console=console,
                transient=True,
                speed_estimate_period=300,
            )
        self._losses: dict[str, float] = {}
        self._said = self._began = time.monotonic()
        self._first_step: int | None = None

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def callbacks(self) -> Callbacks:
        """What the run calls."""
        from groundingml.training import Callbacks

        return Callbacks(on_stage=self.stage, on_step=self.step, on_evaluation=self.evaluation)

    def stage(self, text: str) -> None:
        """Something else begins."""
        if self._bar is None:
            self._print(text)
        elif self._task is None:
            self._bar.console.print(f"{text} ...", style="dim", highlight=False, markup=False)
        else:
            self._bar.update(self._task, losses=f"{text} ...")

    def step(self, report: StepReport) -> None:
        """An optimiser step is done."""
        kinds: dict[str, float] = {}
        for name, value in report.losses.items():  # "decoder_0.focal" and all other focal losses are one
            kind = name.rpartition(".")[2]
            kinds[kind] = kinds.get(kind, 0.0) + value
        for kind, value in kinds.items():
            before = self._losses.get(kind, value)
            self._losses[kind] = before + _SMOOTHING * (value - before)
        if self._first_step is None:
            self._first_step = report.step
            self._began = self._said = time.monotonic()
        losses = f"loss {sum(self._losses.values()):.3f} (" + ", ".join(
            f"{kind} {value:.3f}" for kind, value in self._losses.items()
        )
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("training", total=report.total_steps, losses="")
            self._bar.update(self._task, completed=report.step, losses=losses + ")")
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            self._print(f"step {report.step} of {report.total_steps}, {losses}){self._left(report)}")

    def evaluation(self, numbers: Mapping[str, float]) -> None:
        """The validation images were measured."""
        found = ", ".join(
            f"{shown} {numbers[name]:.3f}"
            for name, shown in (("map50", "mAP50"), ("map", "mAP"), ("recall", "recall"))
            if name in numbers
        )
        self._print(f"after epoch {numbers.get('epoch', 0):g}: {found}")

    def _left(self, report: StepReport) -> str:
        done = report.step - (self._first_step or 0)
        if done < 1:
            return ""
        left_s = (time.monotonic() - self._began) / done * (report.total_steps - report.step)
        return f", about {left_s / 60:.0f} min left" if left_s >= 90 else f", about {left_s:.0f} s left"

    def _print(self, text: str) -> None:
        console = self._bar.console if self._bar is not None else self._console
        console.print(f"groundingml: {text}", markup=False, highlight=False, soft_wrap=True)
