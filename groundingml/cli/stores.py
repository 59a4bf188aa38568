"""The data folder and the database that commands share with the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from groundingml.store import Store


def open_data(data_dir: Path | None, store_url: str | None) -> tuple[Path, Store]:
    """The data folder and its open store; ends the command with the reason where that fails."""
    try:
        from groundingml.store import StoreError, default_data_dir, default_url, open_store
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("groundingml"):
            raise
        fail(f"This needs the package {error.name!r}: pip install 'groundingml[serve]'")
    folder = (data_dir or default_data_dir()).absolute()
    try:
        return folder, open_store(store_url or default_url(folder))
    except StoreError as error:
        fail(str(error))


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what is wrong, and end."""
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(code)
