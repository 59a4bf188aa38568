"""The commands and what `groundingml --help` says about them. Each command lives in a file of its own."""

from __future__ import annotations

from typing import Annotated

import typer

import groundingml
from groundingml.cli.connect import connect
from groundingml.cli.corrections import corrections
from groundingml.cli.detect import detect
from groundingml.cli.doctor import doctor
from groundingml.cli.env import env
from groundingml.cli.evaluate import evaluate
from groundingml.cli.export import export
from groundingml.cli.jobs import jobs
from groundingml.cli.label import label
from groundingml.cli.models import models
from groundingml.cli.prompts import prompts
from groundingml.cli.runs import runs
from groundingml.cli.serve import serve
from groundingml.cli.sync import sync
from groundingml.cli.train import train
from groundingml.cli.versions import versions

app = typer.Typer(
    name="groundingml",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="""Type labels, get boxes: open-vocabulary object detection for photos and for Label Studio.

    [bold]Examples[/bold]

      groundingml detect photo.jpg --labels "cat, remote control"

      groundingml detect photos/ --labels-file labels.txt --json > boxes.json

      groundingml serve                  [dim]# the Label Studio ML backend[/dim]

      groundingml connect --project 7    [dim]# a Label Studio project and its backend[/dim]

      groundingml label --project 7      [dim]# boxes for a whole Label Studio project[/dim]

      groundingml train --project 7      [dim]# what people corrected teaches the model[/dim]

      groundingml doctor --project 7     [dim]# why are there no boxes?[/dim]

      groundingml env                    [dim]# what a bug report needs[/dim]
    """,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"groundingml {groundingml.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(detect)
app.command()(serve)
app.command()(connect)
app.command()(label)
app.command()(train)
app.command()(corrections)
app.command()(sync)
app.command()(prompts)
app.command()(evaluate)
app.command()(doctor)
app.command()(env)
app.add_typer(models)
app.add_typer(export)
app.add_typer(jobs)
app.add_typer(runs)
app.add_typer(versions)
