"""`groundingml train --project`: a training run on what people corrected in a Label Studio project."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from groundingml.cli.runs import follow_run, tell_end
from groundingml.cli.stores import fail, open_data

if TYPE_CHECKING:
    from groundingml.store import Store

STOP_S = 60.0


@dataclass(frozen=True)
class ProjectTraining:
    """What the command was told. detach: come back at once, the run goes on."""

    project: str
    recipe: str
    model: str
    device: str
    data_dir: Path | None = None
    store_url: str | None = None
    label_studio_url: str | None = None
    label_studio_api_key: str | None = None
    allow_hosts: tuple[str, ...] = ()
    retention: str | None = None
    least_gain: float = 0.01
    most_forgotten: float = 0.2
    promote: bool = True
    threads: int | None = None
    detach: bool = False
    recipe_options: dict[str, Any] = field(default_factory=dict)


def train_project(told: ProjectTraining) -> None:
    """Ask for a run, start its process, and follow it to its end.

    Ctrl-C stops the process after saving its state; the same command goes on.
    """
    from groundingml.labelstudio.settings import Settings, SettingsError
    from groundingml.labelstudio.train_run import start_train_run
    from groundingml.learning.process import default_threads
    from groundingml.learning.project_run import RunOptions
    from groundingml.learning.requests import request_run
    from groundingml.learning.versions import process_lives
    from groundingml.store.runs import is_owned

    data_dir, store = open_data(told.data_dir, told.store_url)
    try:
        settings = Settings(
            model=told.model,
            device=told.device,
            data_dir=data_dir,
            store_url=told.store_url,
            label_studio_url=told.label_studio_url,
            label_studio_api_key=told.label_studio_api_key,
            allow_hosts=told.allow_hosts,
        )
        options = RunOptions(
            base=told.model,
            device=told.device,
            retention=told.retention,
            least_gain=told.least_gain,
            most_forgotten=told.most_forgotten,
            promote=told.promote,
            threads=told.threads,
            recipe_options=told.recipe_options,
        )
    except (SettingsError, ValueError) as error:
        fail(str(error), 2)
    with store:
        try:
            run, is_new = request_run(store, told.project, "command", options, told.recipe)
        except ValueError as error:
            fail(str(error), 2)
        process = None
        if not is_owned(run, process_lives):
            process = start_train_run(run.id, data_dir, settings, told.threads or default_threads())
        what = "begins" if is_new else "goes on" if process is not None else "runs already"
        typer.echo(f"Run {run.id} {what}; its log: {data_dir / 'runs' / str(run.id) / 'log.txt'}", err=True)
        if told.detach:
            typer.echo(str(run.id))
            return
        _follow(store, run.id, process)


def _follow(store: Store, run_id: int, process: subprocess.Popen[bytes] | None) -> None:
    try:
        ended = follow_run(store, run_id, Console(stderr=True))
    except KeyboardInterrupt:
        if process is None or process.poll() is not None:
            typer.echo(
                f"groundingml: run {run_id} goes on; cancel it: groundingml runs cancel {run_id}", err=True
            )
            raise typer.Exit(130) from None
        typer.echo("groundingml: saving what is done so far ...", err=True)
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        typer.echo(f"groundingml: run {run_id} is interrupted; the same command goes on with it", err=True)
        raise typer.Exit(130) from None
    if process is not None:
        process.wait(STOP_S)
    tell_end(ended)
