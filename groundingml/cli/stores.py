"""The data folder and the database that commands share with the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from groundingml.labelstudio.predictor import Predicted
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


@contextmanager
def recording(data_dir: Path | None, store_url: str | None) -> Iterator[Callable[[Predicted], None]]:
    """A function that has a predicted task recorded, so that corrections of it are understood.

    Where the database cannot be used it says so and does nothing: predictions are worth having without.
    """
    from groundingml.labelstudio.capture import Capture
    from groundingml.labelstudio.prediction_records import record_in
    from groundingml.labelstudio.remembered_prompts import learn_prompts
    from groundingml.store import StoreError, default_data_dir, default_url, open_store

    try:
        store = open_store(store_url or default_url((data_dir or default_data_dir()).absolute()))
    except StoreError as error:
        typer.echo(f"groundingml: {error} What is predicted is not recorded here.", err=True)
        yield lambda predicted: None
        return
    capture = Capture(store, learn_prompts)
    capture.start()
    try:
        yield record_in(capture)
    finally:
        capture.close()
        store.close()


def project_memory(
    data_dir: Path | None, store_url: str | None, project: str
) -> tuple[dict[str, str], Path | None]:
    """What the server remembers of a project: its prompts by control, and the folder of the version that
    serves it. Nothing where the database cannot be used."""
    from groundingml.labelstudio.known_projects import KnownProjects
    from groundingml.store import StoreError, default_data_dir, default_url, open_store
    from groundingml.store.versions import serving_version

    try:
        store = open_store(store_url or default_url((data_dir or default_data_dir()).absolute()))
    except StoreError:
        return {}, None  # `recording` has said so
    with store:
        with store.read() as session:
            version = serving_version(session, project)
        folder = None if version is None else Path(version.folder)
        return KnownProjects(store).state(project).prompts, folder


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what is wrong, and end."""
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(code)
