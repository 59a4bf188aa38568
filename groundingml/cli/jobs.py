"""`groundingml jobs`: labelling jobs that a running server does."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from groundingml.cli.options import DataDir, StoreUrl
from groundingml.cli.progress import LongRun
from groundingml.cli.stores import fail, open_data

if TYPE_CHECKING:
    from groundingml.store import Store
    from groundingml.store.tables import Job

LOOK_EVERY_S = 0.5

jobs = typer.Typer(
    name="jobs",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Whole projects labelled by the running server: start, list, follow and cancel.

    [bold]Examples[/bold]

      groundingml jobs start --project 7       [dim]# the server does it; it survives restarts[/dim]

      groundingml jobs follow 12               [dim]# a progress bar until it ends[/dim]

      groundingml jobs cancel 12

    The same over HTTP: POST /jobs {"project": 7}, GET /jobs, GET /jobs/12, POST /jobs/12/cancel.
    """,
)

JobId = Annotated[int, typer.Argument(metavar="JOB", help="Number of the job, as listed.")]


@jobs.command()
def start(
    project: Annotated[int, typer.Option("--project", "-p", min=1, help="Number of the project to label.")],
    only_missing: Annotated[
        bool, typer.Option("--only-missing", help="Leave out tasks with a prediction of any model.")
    ] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Only tasks for which this holds: 'total_annotations = 0'."),
    ] = None,
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """Ask the server to label a project. One that waits or runs already is not asked for twice."""
    from groundingml.labelstudio.task_filters import FilterError, parse_filter
    from groundingml.store.jobs import enqueue_job

    try:
        for text in filters or ():
            parse_filter(text)
    except FilterError as error:
        fail(str(error), 2)
    options = {"only_missing": only_missing, "filters": list(filters or ()), "batch": 50}
    _, opened = open_data(data_dir, store)
    with opened, opened.begin() as session:
        job = enqueue_job(session, str(project), options)
    typer.echo(f"Job {job.id} is {job.state}; a running `groundingml serve` with the same data does it.")
    typer.echo(f"Watch it: groundingml jobs follow {job.id}")


@jobs.command("list")
def list_jobs(
    project: Annotated[str | None, typer.Option("--project", "-p", help="Only of this project.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """List the last jobs, the newest first."""
    from groundingml.store.jobs import job_as_json, newest_jobs

    _, opened = open_data(data_dir, store)
    with opened, opened.read() as session:
        rows = newest_jobs(session, project)
    if as_json:
        typer.echo(json.dumps([job_as_json(row) for row in rows], indent=2, ensure_ascii=False))
        return
    if not rows:
        typer.echo("No labelling jobs yet. `groundingml jobs start --project N` begins one.")
        return
    table = Table()
    for column in ("job", "project", "state", "asked for", "progress", "what came of it"):
        table.add_column(column, overflow="fold")
    for row in rows:
        asked = f"{row.created_at.astimezone():%Y-%m-%d %H:%M}"
        now = row.progress or {}
        progress = f"{now['done']} of {now['total']}" if row.state == "running" and now.get("total") else ""
        table.add_row(str(row.id), row.project, row.state, asked, progress, row.message or "")
    Console().print(table)


@jobs.command()
def follow(job: JobId, data_dir: DataDir = None, store: StoreUrl = None) -> None:
    """Show a job's progress until it ends. Ctrl-C stops the watching, not the job."""
    _, opened = open_data(data_dir, store)
    with opened:
        try:
            ended = _follow(opened, job, Console(stderr=True))
        except KeyboardInterrupt:
            typer.echo(
                f"groundingml: job {job} goes on; cancel it with groundingml jobs cancel {job}", err=True
            )
            raise typer.Exit(130) from None
    if ended.state != "done":
        fail(f"job {job} {ended.state}: {ended.message}")
    typer.echo(f"Job {job}: {ended.message}")
    for failure in (ended.report or {}).get("failed", []):
        typer.echo(f"  {failure['item']}: {failure['reason']}")


@jobs.command()
def cancel(job: JobId, data_dir: DataDir = None, store: StoreUrl = None) -> None:
    """End a job. What it has stored stays."""
    from groundingml.learning.versions import process_lives
    from groundingml.store.jobs import cancel_job
    from groundingml.store.runs import Owner

    _, opened = open_data(data_dir, store)
    with opened, opened.begin() as session:
        row = cancel_job(session, job, Owner.this_process().host, process_lives)
    if row is None:
        fail(f"there is no job {job}; see groundingml jobs list")
    if row.state not in ("running", "queued", "cancelled"):
        fail(f"job {job} is over: {row.state}, {row.message}")
    typer.echo(f"Job {job} is cancelled." if row.state == "cancelled" else f"Job {job} ends within seconds.")


def _follow(store: Store, job_id: int, console: Console) -> Job:
    """The job as it is when it has ended."""
    shown = 0
    begun = False
    with LongRun(f"job {job_id}", "tasks", console) as bar:
        while (job := _read(store, job_id)).state in ("queued", "running"):
            now = job.progress or {}
            if not begun and now.get("total"):
                bar.begin(now["total"])
                begun = True
            for _ in range(now.get("done", 0) - shown):
                bar.advance()
            shown = max(shown, now.get("done", 0))
            time.sleep(LOOK_EVERY_S)
    return job


def _read(store: Store, job_id: int) -> Job:
    from groundingml.store.tables import Job

    with store.read() as session:
        job = session.get(Job, job_id)
    if job is None:
        fail(f"there is no job {job_id}; see groundingml jobs list")
    found: Job = job
    return found
