"""`groundingml export`: what leaves groundingml for other tools."""

from __future__ import annotations

import typer

from groundingml.cli.export_corrections import export_corrections

export = typer.Typer(
    name="export",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Write what other tools read.

    [bold]Examples[/bold]

      groundingml export corrections --project 7 --format coco --output cats/
    """,
)
export.command("corrections")(export_corrections)
