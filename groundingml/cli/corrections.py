"""`groundingml corrections`: what people changed of what was predicted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from groundingml.cli.options import DataDir, StoreUrl
from groundingml.cli.stores import fail, open_data

if TYPE_CHECKING:
    from groundingml.store import Store
    from groundingml.store.tables import Correction

_STYLES = {"kept": "green", "moved": "yellow", "relabelled": "yellow", "deleted": "red", "added": "cyan"}


def corrections(
    project: Annotated[
        str | None, typer.Option("--project", "-p", help="Only this Label Studio project.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many of the newest rows the table shows.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all of them, one JSON record a line, and nothing else.")
    ] = False,
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """Show what people changed of what was predicted, and how much of it they accept.

    [bold]Examples[/bold]

      groundingml corrections --project 7

      groundingml corrections --json | jq 'select(.kind == "relabelled")'

    Each region of a submitted annotation is [green]kept[/green], [yellow]moved[/yellow] (IoU is its overlap
    with the predicted box), [yellow]relabelled[/yellow] (perhaps moved too), or [cyan]added[/cyan]; a
    predicted one that is missing is [red]deleted[/red]. Acceptance is the share of the predicted regions that
    were kept. Works while the server runs and while it is stopped; `groundingml sync` repairs what was
    submitted while it could not be reached.
    """
    _, opened = open_data(data_dir, store)
    with opened:
        _process_what_waits(opened)
        from groundingml.learning import acceptance

        with opened.read() as session:
            rows = acceptance.corrections(session, project)
    if as_json:
        for row in rows:
            typer.echo(json.dumps(as_record(row), ensure_ascii=False))
        return
    if not rows:
        where = f" in project {project}" if project is not None else ""
        typer.echo(
            f"No corrections{where} yet. They come with the annotations that people submit in projects "
            "connected to this backend; `groundingml sync --project N` gets those that were missed."
        )
        return
    console = Console()
    if limit:
        _print_rows(rows, limit, console, with_project=project is None)
    _print_labels(rows, console)


def as_record(row: Correction) -> dict[str, Any]:
    """One correction as JSON: boxes in percent of the image, the time in UTC."""
    from groundingml.learning.acceptance import was_moved

    return {
        "annotation_id": int(row.annotation_id) if row.annotation_id.isdecimal() else row.annotation_id,
        "project": row.project,
        "task": row.task,
        "region_id": row.region_id,
        "control": row.from_name,
        "kind": row.kind,
        "moved": was_moved(row),
        "relabelled": row.kind == "relabelled",
        "iou": row.iou,
        "predicted_label": row.predicted_label,
        "final_label": row.final_label,
        "predicted_box": row.predicted_box,
        "final_box": row.final_box,
        "score": row.score,
        "prompt": row.prompt,
        "model_version": row.model_version,
        "completed_by": row.completed_by,
        "lead_time": row.lead_time,
        "made_at": row.made_at.isoformat(),
    }


def _process_what_waits(store: Store) -> None:
    """A server that was stopped may have left events that it had acknowledged."""
    from sqlalchemy.exc import SQLAlchemyError

    from groundingml.labelstudio.inbox_processing import process_inbox
    from groundingml.labelstudio.remembered_prompts import learn_prompts
    from groundingml.store import StoreError
    from groundingml.store.inbox import waiting_events

    try:
        with store.read() as session:
            waits = waiting_events(session) > 0
        if waits:
            process_inbox(store, learn_prompts)
    except (SQLAlchemyError, StoreError) as error:
        fail(f"the database cannot be used: {str(getattr(error, 'orig', None) or error).splitlines()[0]}")


def _print_rows(rows: Sequence[Correction], limit: int, console: Console, *, with_project: bool) -> None:
    newest = rows[-limit:]
    more = (
        f"the newest {len(newest)} of {len(rows):,} (--json prints all)" if len(newest) < len(rows) else None
    )
    table = Table(title="Corrections", caption=more)
    for column in [*(("project",) if with_project else ()), "task", "annotation"]:
        table.add_column(column, overflow="fold")
    table.add_column("what", no_wrap=True)
    table.add_column("label", overflow="fold")
    for column in ("IoU", "score", "seconds"):
        table.add_column(column, justify="right")
    for column in ("model", "when"):
        table.add_column(column, no_wrap=True)
    for row in newest:
        what = row.kind
        if row.kind == "relabelled" and as_record(row)["moved"]:
            what = "relabelled, moved"
        cells = [
            row.task,
            row.annotation_id,
            f"[{_STYLES[row.kind]}]{what}[/]",
            _label(row),
            _number(row.iou, ".2f"),
            _number(row.score, ".2f"),
            _number(row.lead_time, ".0f"),
            (row.model_version or "")[:12],
            f"{row.made_at.astimezone():%Y-%m-%d %H:%M}",
        ]
        table.add_row(*([row.project] if with_project else []), *cells)
    console.print(table)


def _print_labels(rows: Sequence[Correction], console: Console) -> None:
    from groundingml.learning.acceptance import Counts, acceptance_by_label

    table = Table(title="Acceptance by label")
    table.add_column("label", overflow="fold")
    columns = ("predicted", "kept", "moved", "relabelled", "deleted", "added", "acceptance", "mean IoU")
    for column in columns:
        table.add_column(column, justify="right")

    def add(name: str, counts: Counts, style: str | None = None) -> None:
        numbers = [
            counts.predicted,
            counts.kept,
            counts.moved,
            counts.relabelled,
            counts.deleted,
            counts.added,
        ]
        rate = "" if counts.rate is None else f"{counts.rate:.0%}"
        table.add_row(name, *map(str, numbers), rate, _number(counts.mean_iou, ".2f"), style=style)

    total = Counts()
    for label, counts in acceptance_by_label(rows).items():
        add(_escaped(label), counts)
    for row in rows:
        total.add(row.kind, row.iou)
    table.add_section()
    add("all", total, "bold")
    console.print(table)


def _label(row: Correction) -> str:
    if row.kind == "relabelled":
        return f"{_escaped(row.predicted_label)} → {_escaped(row.final_label)}"
    return _escaped(row.final_label if row.predicted_label is None else row.predicted_label)


def _escaped(label: str | None) -> str:
    from rich.markup import escape

    return "[dim]no label[/]" if label is None else escape(label)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
