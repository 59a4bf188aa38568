"""`groundingml export`: what leaves groundingml for other tools."""

from __future__ import annotations

import typer

from groundingml.cli.export_corrections import export_corrections
from groundingml.cli.export_onnx import export_onnx

export = typer.Typer(
    name="export",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Write what other tools read.

    [bold]Examples[/bold]

      groundingml export corrections --project 7 --format coco --output cats/

      groundingml export onnx --model llmdet-tiny --output llmdet-tiny.onnx
    """,
)
export.command("corrections")(export_corrections)
export.command("onnx")(export_onnx)
