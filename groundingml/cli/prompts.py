"""`groundingml prompts`: what a project's next tasks are asked for beside its labels."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from groundingml.cli.options import DataDir, StoreUrl
from groundingml.cli.stores import open_data


def prompts(
    project: Annotated[
        int | None, typer.Option("--project", "-p", min=1, help="Only this project; needed to change it.")
    ] = None,
    text: Annotated[str | None, typer.Option("--set", help='Remember this prompt: "cat . cup".')] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Forget the project's prompts.")] = False,
    control: Annotated[
        str | None, typer.Option(help="Name of the TextArea, where a project has several (else its first).")
    ] = None,
    data_dir: DataDir = None,
    store: StoreUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Show, change or clear the remembered prompts of Label Studio projects.

    [bold]Examples[/bold]

      groundingml prompts

      groundingml prompts --project 7 --set "cat . remote control"

      groundingml prompts --project 7 --clear

    The prompt last submitted with an annotation is remembered: the next tasks of the project come with boxes
    for it too. In Label Studio a prompt of a single dot, submitted, clears it as well.
    """
    from groundingml.labelstudio.remembered_prompts import RememberedPrompts

    if (text is not None or clear) and project is None:
        raise typer.BadParameter("--set and --clear need --project")
    if text is not None and clear:
        raise typer.BadParameter("--set and --clear exclude each other")
    with open_data(data_dir, store)[1] as opened:
        remembered = RememberedPrompts(opened)
        name = None if project is None else str(project)
        if name is not None and text is not None:
            remembered.set(name, control or remembered.control_of(name), text)
        if name is not None and clear:
            remembered.clear(name, control)
        found = remembered.all(name)
    if as_json:
        listed = [
            {"project": p.project, "control": p.control, "text": p.text, "since": p.updated_at.isoformat()}
            for p in found
        ]
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
    elif not found:
        typer.echo("groundingml: no prompt is remembered")
    for prompt in () if as_json else found:
        since = f"{prompt.updated_at:%Y-%m-%d %H:%M}"
        typer.echo(f"project {prompt.project}, {prompt.control}: {prompt.text}  (since {since} UTC)")
