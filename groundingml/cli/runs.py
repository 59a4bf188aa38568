"""`groundingml runs`: training runs, wherever they were asked for."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from groundingml.cli.options import DataDir, StoreUrl
from groundingml.cli.stores import fail, open_data

if TYPE_CHECKING:
    from groundingml.store import Store
    from groundingml.store.tables import Run

LOOK_EVERY_S = 0.5
_SAY_EVERY_S = 15.0

runs = typer.Typer(
    name="runs",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""List, follow and cancel training runs.

    [bold]Examples[/bold]

      groundingml runs list

      groundingml runs follow 12         [dim]# a progress bar until it ends[/dim]

      groundingml runs cancel 12
    """,
)

RunId = Annotated[int, typer.Argument(metavar="RUN", help="Number of the run, as listed.")]


@runs.command("list")
def list_runs(
    project: Annotated[str | None, typer.Option("--project", "-p", help="Only of this project.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """List the last runs, the newest first."""
    from groundingml.store.runs import newest_runs, run_as_json

    _, opened = open_data(data_dir, store)
    with opened, opened.read() as session:
        rows = newest_runs(session, project)
    if as_json:
        typer.echo(json.dumps([run_as_json(row) for row in rows], indent=2, ensure_ascii=False))
        return
    if not rows:
        typer.echo("No training runs yet. `groundingml train --project N` begins one.")
        return
    table = Table()
    for column in ("run", "project", "state", "asked for by", "begun", "progress", "what came of it"):
        table.add_column(column, overflow="fold")
    for row in rows:
        begun = "" if row.started_at is None else f"{row.started_at.astimezone():%Y-%m-%d %H:%M}"
        progress = progress_text(row.progress) if row.state == "running" else ""
        table.add_row(
            str(row.id), row.project or "files", row.state, row.trigger, begun, progress, row.message or ""
        )
    Console().print(table)


@runs.command()
def follow(run: RunId, data_dir: DataDir = None, store: StoreUrl = None) -> None:
    """Show a run's progress until it ends. Ctrl-C stops the watching, not the run."""
    _, opened = open_data(data_dir, store)
    with opened:
        try:
            ended = follow_run(opened, run, Console(stderr=True))
        except KeyboardInterrupt:
            typer.echo(
                f"groundingml: run {run} goes on; cancel it with groundingml runs cancel {run}", err=True
            )
            raise typer.Exit(130) from None
    tell_end(ended)


@runs.command()
def cancel(run: RunId, data_dir: DataDir = None, store: StoreUrl = None) -> None:
    """End a run. What serves stays as it is."""
    from groundingml.learning.versions import process_lives
    from groundingml.store.runs import cancel_run

    _, opened = open_data(data_dir, store)
    with opened, opened.begin() as session:
        row = cancel_run(session, run, process_lives)
    if row is None:
        fail(f"there is no run {run}; see groundingml runs list")
    if row.state not in ("running", "queued", "cancelled"):
        fail(f"run {run} is over: {row.state}, {row.message}")
    typer.echo(f"Run {run} is cancelled." if row.state == "cancelled" else f"Run {run} ends within seconds.")


def follow_run(store: Store, run_id: int, console: Console) -> Run:
    """Show a run's progress until it ends; the run as it then is. KeyboardInterrupt is left to the caller."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    said, said_at = "", 0.0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"run {run_id}", total=None)
        while True:
            run = _read(store, run_id)
            if run.state not in ("queued", "running"):
                return run
            now = run.progress or {}
            text = progress_text(now) if run.state == "running" else run.message or "waits for its process"
            total = int(now.get("total") or 0) or None
            progress.update(
                bar, description=f"run {run_id}: {text}", completed=now.get("done", 0), total=total
            )
            phase = str(now.get("phase"))
            if not console.is_terminal and (phase != said or time.monotonic() - said_at > _SAY_EVERY_S):
                console.print(
                    f"groundingml: run {run_id}: {text}", markup=False, highlight=False, soft_wrap=True
                )
                said, said_at = phase, time.monotonic()
            time.sleep(LOOK_EVERY_S)


def tell_end(run: Run) -> None:
    """What came of a run; the command's exit status tells it too."""
    if run.state != "done":
        fail(f"run {run.id} {run.state}: {run.message}")
    typer.echo(f"Run {run.id}: {run.message}")


def progress_text(progress: dict[str, Any] | None) -> str:
    """How far a run is, in words."""
    if not progress:
        return "begins"
    text = str(progress["phase"])
    if progress.get("total"):
        text += f" {progress['done']} of {progress['total']}"
    if "loss" in progress:
        text += f", loss {progress['loss']:.3f}"
    return text


def _read(store: Store, run_id: int) -> Run:
    from groundingml.store.tables import Run

    with store.read() as session:
        run = session.get(Run, run_id)
    if run is None:
        fail(f"there is no run {run_id}; see groundingml runs list")
    found: Run = run
    return found
