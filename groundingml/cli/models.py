"""`groundingml models`: what there is, what is on this machine, and how two models differ on a photo."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from groundingml.cli.models_compare import compare
from groundingml.cli.models_fetch import fetch

if TYPE_CHECKING:
    from groundingml.models.catalog import CatalogEntry

models = typer.Typer(
    name="models",
    rich_markup_mode="rich",
    help="""List the models that --model takes, fetch one for offline use, compare some on photos.

    [bold]Examples[/bold]

      groundingml models

      groundingml models --json | jq -r '.[] | select(.downloaded) | .name'

      groundingml models fetch llmdet-tiny

      groundingml models compare nano grounding-dino-tiny --images photo.jpg --labels "cat, remote control"
    """,
)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@models.callback(invoke_without_command=True)
def list_by_default(context: typer.Context, as_json: AsJson = False) -> None:
    """List all models, unless a command is named."""
    if context.invoked_subcommand is None:
        list_models(as_json)


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List all models: family, size, licence, where they run, and whether they are downloaded."""
    from groundingml.models.catalog import CATALOG

    rows = [_facts(entry) for entry in CATALOG]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "family", "parameters", "COCO", "LVIS", "licence", "where", "what for"):
        right = name in ("parameters", "COCO", "LVIS")
        fixed = name not in ("what for", "licence")
        table.add_column(name, justify="right" if right else "left", no_wrap=fixed, overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            row["family"] if row["ours"] else f"{row['family']} (not ours)",
            "" if row["parameters_millions"] is None else f"{row['parameters_millions']} M",
            "" if row["coco_ap"] is None else f"{row['coco_ap']:.1f}",
            "" if row["lvis_minival_ap"] is None else f"{row['lvis_minival_ap']:.1f}",
            row["licence"],
            row["status"],
            row["about"],
        )
    # A list for people is as wide as it needs to be where nobody sees a terminal's edge.
    console = Console()
    (console if console.is_terminal else Console(width=170)).print(table)
    typer.echo(
        "\nCOCO, LVIS: zero-shot box AP on COCO val2017 and LVIS minival as their authors published it; see "
        "docs/models.md.\n--model also takes a hub id, a folder or a file, and hf:ID for any OWL-ViT, OWLv2 "
        "or OmDet-Turbo of transformers."
    )


def _facts(entry: CatalogEntry) -> dict[str, Any]:
    from groundingml.models.catalog import files_of

    files = files_of(entry)
    size = sum(file.stat().st_size for file in files)
    return {
        "name": entry.name,
        "family": entry.family,
        "source": entry.source,
        "parameters_millions": entry.parameters_millions,
        "licence": entry.licence,
        "about": entry.about,
        "coco_ap": entry.coco,
        "lvis_minival_ap": entry.lvis_minival,
        "ours": entry.ours,
        "runs": "on this machine (CPU or GPU)" if entry.runs == "here" else "on the vendor's server",
        "downloaded": bool(files),
        "bytes": size or None,
        "folder": str(files[0].parent) if files else None,
        "status": _status(entry, size),
    }


def _status(entry: CatalogEntry, size: int) -> str:
    if entry.runs == "vendor":
        from groundingml.inference.cloud_detector import TOKEN_VARIABLE

        return "vendor's server" if os.environ.get(TOKEN_VARIABLE) else "vendor's server, no token"
    if entry.source is None:
        return f"in the package, {size / 1e6:.0f} MB"
    return f"here, {size / 1e6:.0f} MB" if size else "here, not downloaded"


models.command()(fetch)
models.command()(compare)
