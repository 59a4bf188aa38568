"""How far a long command is, on stderr: a bar with the time left on a terminal, a line now and then
elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 30.0


class LongRun:
    """A context manager; ``begin`` with the number of steps, ``advance`` after each."""

    def __init__(self, what: str, unit: str, console: Console) -> None:
        self._what = what
        self._unit = unit
        self._console = console
        self._total = self._done = 0
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            # The speed of the last minutes tells the time left better than that of the last seconds.
            self._bar = Progress(
                *columns,
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console,
                transient=True,
                speed_estimate_period=300,
            )

    def __enter__(self) -> LongRun:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, total: int) -> None:
        """Set the number of steps; the clock for the time left starts here."""
        self._total = total
        self._began = self._said = time.monotonic()
        if self._bar is not None:
            self._bar.add_task(self._what, total=total)

    def advance(self) -> None:
        """One step more is done."""
        self._done += 1
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.advance(task)
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            self._console.print(self._line(), markup=False, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        left_s = (time.monotonic() - self._began) / self._done * max(self._total - self._done, 0)
        left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
        return f"groundingml: {self._what} {self._done} of {self._total} {self._unit}, about {left} left"
