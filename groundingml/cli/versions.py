"""`groundingml versions`: what training made of a model, and which of it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from groundingml.cli.options import DataDir, StoreUrl
from groundingml.cli.stores import fail, open_data

if TYPE_CHECKING:
    from groundingml.store.tables import Version

versions = typer.Typer(
    name="versions",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""List, compare, promote and roll back the trained versions of projects.

    A version serves once it is measured to be better than the one before; otherwise it is kept, with the
    reason.

    [bold]Examples[/bold]

      groundingml versions list --project 7

      groundingml versions compare 3 4

      groundingml versions rollback --project 7

    A running server takes what is changed here into use within seconds, without losing a request.
    """,
)

Project = Annotated[str | None, typer.Option("--project", "-p", help="Id of the Label Studio project.")]
VersionId = Annotated[int, typer.Argument(metavar="VERSION", help="Number of the version, as listed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@versions.command("list")
def list_versions(
    project: Project = None, as_json: AsJson = False, data_dir: DataDir = None, store: StoreUrl = None
) -> None:
    """List versions, the newest first."""
    from groundingml.store.versions import versions_of

    _, opened = open_data(data_dir, store)
    with opened, opened.read() as session:
        rows = versions_of(session, project)
    if as_json:
        typer.echo(json.dumps([_as_json(row) for row in rows], indent=2, ensure_ascii=False))
        return
    if not rows:
        typer.echo("No versions yet: the base model serves. `groundingml train --project N` makes one.")
        return
    table = Table()
    for column in ("version", "project", "state", "held-out mAP50", "retention", "made", "why"):
        table.add_column(column, overflow="fold")
    for row in rows:
        state = row.state if row.folder else f"{row.state}, removed"
        table.add_row(
            str(row.id),
            row.project,
            f"[bold green]{state}[/]" if row.state == "serving" else state,
            _change(row.metrics, "holdout"),
            _change(row.metrics, "retention"),
            f"{row.created_at.astimezone():%Y-%m-%d %H:%M}",
            row.reason or "",
        )
    Console().print(table)


@versions.command()
def show(
    version: VersionId, as_json: AsJson = False, data_dir: DataDir = None, store: StoreUrl = None
) -> None:
    """Show one version: its numbers for each label, its thresholds, and what it was made of."""
    folder, opened = open_data(data_dir, store)
    with opened:
        row = _find(opened, version)
    provenance = _provenance(folder, row)
    if as_json:
        typer.echo(json.dumps({**_as_json(row), "provenance": provenance}, indent=2, ensure_ascii=False))
        return
    console = Console()
    console.print(f"[bold]Version {row.id}[/] of project {row.project}: {row.state}. {row.reason or ''}")
    where = str(folder / row.folder) if row.folder else "removed, as one of the oldest"
    console.print(f"Files: {where}", soft_wrap=True, highlight=False)
    if provenance:
        images = provenance["images"]
        console.print(
            f"Made by run {provenance['run']} from {provenance['base']} with recipe {provenance['recipe']}: "
            f"{images['train']} images to learn from, {images['holdout']} held out.",
            highlight=False,
        )
    thresholds = (row.thresholds or {}).get("labels", {})
    table = Table(caption="held-out images, IoU 0.50")
    for column in ("label", "boxes", "AP50 before", "AP50 after", "threshold", "precision", "recall"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for name, after, before in _by_label(row.metrics, row.metrics):
        fitted = thresholds.get(name, {})
        numbers = [
            f"{fitted[key]:.2f}" if key in fitted else "-" for key in ("threshold", "precision", "recall")
        ]
        table.add_row(name, str(after["boxes"]), _number(before), _number(after), *numbers)
    console.print(table)


@versions.command()
def compare(
    first: Annotated[int, typer.Argument(metavar="VERSION", help="Number of a version.")],
    second: Annotated[int, typer.Argument(metavar="VERSION", help="Number of another one.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """Compare two versions label by label, each as it was measured after its training.

    The held-out images grow with the corrections, so older numbers may come from fewer images; `groundingml
    evaluate` measures both on one set.
    """
    _, opened = open_data(data_dir, store)
    with opened:
        one, other = _find(opened, first), _find(opened, second)
    if one.project != other.project:
        fail(f"version {first} is of project {one.project}, version {second} of {other.project}", 2)
    if as_json:
        typer.echo(json.dumps([_as_json(one), _as_json(other)], indent=2, ensure_ascii=False))
        return
    table = Table(title=f"AP50 on held-out images of project {one.project}")
    table.add_column("label")
    for column in (f"version {first}", f"version {second}", "change"):
        table.add_column(column, justify="right")
    for name, after, before in _by_label(other.metrics, one.metrics, key="after"):
        table.add_row(name, _number(before), _number(after), _difference(before, after))
    table.add_section()
    for title, part in (("mean over labels", "holdout"), ("retention set", "retention")):
        a, b = _part(one.metrics, "after", part), _part(other.metrics, "after", part)
        table.add_row(title, _number(a), _number(b), _difference(a, b), style="bold")
    images = [_part(row.metrics, "after", "holdout") or {} for row in (one, other)]
    table.add_row("held-out images", *(str(numbers.get("images", "-")) for numbers in images), "")
    Console().print(table)


@versions.command()
def promote(version: VersionId, data_dir: DataDir = None, store: StoreUrl = None) -> None:
    """Let a version serve its project, whatever was measured."""
    from groundingml.learning.versions import VersionError, open_version
    from groundingml.store.versions import VersionChangeError, promote_version

    folder, opened = open_data(data_dir, store)
    with opened:
        row = _find(opened, version)
        try:
            if row.folder:
                open_version(folder / row.folder)
            with opened.begin() as session:
                former = promote_version(session, session.merge(row), "promoted by hand")
        except (VersionError, VersionChangeError) as error:
            fail(str(error))
    before = "the base model" if former is None else f"version {former.id}"
    typer.echo(
        f"Version {version} serves project {row.project} in place of {before}. Back again: "
        f"groundingml versions rollback --project {row.project}"
    )


@versions.command()
def rollback(
    project: Annotated[str, typer.Option("--project", "-p", help="Id of the Label Studio project.")],
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """Let the version serve again that served before; its answers are the same as then, bit for bit."""
    from groundingml.learning.versions import VersionError, open_version
    from groundingml.store.versions import VersionChangeError, roll_back

    folder, opened = open_data(data_dir, store)
    with opened:
        try:
            with opened.begin() as session:
                present, former = roll_back(session, project, "rolled back by hand")
                if former is not None:
                    open_version(folder / former.folder)
        except (VersionError, VersionChangeError) as error:
            fail(str(error))
    now = "the base model" if former is None else f"version {former.id}"
    typer.echo(
        f"Project {project} is served by {now} again, in place of version {present.id}. Back again: "
        f"groundingml versions promote {present.id}"
    )


def _find(opened: Any, version: int) -> Version:
    from groundingml.store.tables import Version

    with opened.read() as session:
        row = session.get(Version, version)
    if row is None:
        fail(f"there is no version {version}; see groundingml versions list")
    found: Version = row
    return found


def _provenance(folder: Path, row: Version) -> dict[str, Any]:
    from groundingml.learning.versions import PROVENANCE, VersionError, open_version

    if not row.folder:
        return {}
    try:
        return open_version(folder / row.folder).read(PROVENANCE)
    except (VersionError, OSError, ValueError) as error:
        fail(str(error))


def _as_json(row: Version) -> dict[str, Any]:
    return {
        "id": row.id,
        "project": row.project,
        "state": row.state,
        "digest": row.digest,
        "folder": row.folder,
        "parent": row.parent_id,
        "run": row.run_id,
        "reason": row.reason,
        "metrics": row.metrics,
        "thresholds": row.thresholds,
        "created_at": row.created_at.isoformat(timespec="seconds"),
        "promoted_at": None if row.promoted_at is None else row.promoted_at.isoformat(timespec="seconds"),
    }


def _part(metrics: Any, when: str, part: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = ((metrics or {}).get(when) or {}).get(part)
    return found


def _by_label(
    metrics: Any, others: Any, key: str = "before"
) -> list[tuple[str, dict[str, Any], dict[str, Any] | None]]:
    """(label, its numbers after training in ``metrics``, those under ``key`` in ``others``), most boxes
    first."""
    after = (_part(metrics, "after", "holdout") or {}).get("labels", {})
    before = (_part(others, key, "holdout") or {}).get("labels", {})
    rows = [(name, numbers, before.get(name)) for name, numbers in after.items()]
    return sorted(rows, key=lambda row: -row[1]["boxes"])


def _change(metrics: Any, part: str) -> str:
    before, after = _part(metrics, "before", part), _part(metrics, "after", part)
    return f"{_number(before)} -> {_number(after)}" if after else "-"


def _number(numbers: dict[str, Any] | None) -> str:
    return "-" if numbers is None else f"{numbers['map50']:.3f}"


def _difference(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    if before is None or after is None:
        return "-"
    change = after["map50"] - before["map50"]
    return f"[{'green' if change > 0 else 'red' if change < 0 else 'dim'}]{change:+.3f}[/]"
