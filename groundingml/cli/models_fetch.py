"""`groundingml models fetch`: a model on this machine, whole, for use without network."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

_INTERRUPTED = 130


def fetch(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Short names, hub ids, or hf: and a hub id.")
    ],
) -> None:
    """Download models for offline use, and verify that they are whole and load.

    [bold]Examples[/bold]

      groundingml models fetch grounding-dino-tiny

      groundingml models fetch llmdet-tiny llmdet-base

      groundingml models fetch hf:google/owlv2-base-patch16-ensemble

    An interrupted download goes on where it stopped when the same command is started again. Files lie in the
    Hugging Face cache, which HF_HOME moves.
    """
    shown = Console(stderr=True)
    for name in names:
        _fetch(name, shown)


def _fetch(name: str, shown: Console) -> None:
    from groundingml.inference import load_detector
    from groundingml.models import CheckpointError
    from groundingml.models.checkpoints.hub import damaged_files

    if name.startswith("api:"):
        _fail(f"{name} runs on a server of its makers: there is nothing to fetch")
    try:
        files = _files(name)
        with shown.status(f"Verifying {name} ...") if shown.is_terminal else nullcontext():
            damaged = damaged_files(files)
            for file in damaged:
                file.resolve().unlink()
                file.unlink()
            if damaged:
                listed = ", ".join(file.name for file in damaged)
                _fail(f"{name}: {listed} was damaged and is removed; start the same command again")
            detector = load_detector(name, "cpu", digest=False)
    except (CheckpointError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        typer.echo("groundingml: interrupted; the same command goes on where it stopped", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    size = sum(file.stat().st_size for file in files)
    typer.echo(f"{detector.name}: {size / 1e6:.1f} MB in {files[0].parent}, whole, and it loads")


def _files(name: str) -> list[Path]:
    """All files of a model, downloaded where they are not there. The hub's client shows the progress."""
    if name.startswith("hf:"):
        from groundingml.models.checkpoints.hub import transformers_folder

        path = Path(name.removeprefix("hf:")).expanduser()
        folder = path if path.is_dir() else transformers_folder(name.removeprefix("hf:"))
        return sorted(file for file in folder.iterdir() if file.is_file())
    from groundingml.models.checkpoints.sources import resolve

    found = resolve(name)
    if found.folder is None:
        return list(found.weights)
    return sorted(file for file in found.folder.iterdir() if file.is_file())


def _fail(message: str) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(1)
