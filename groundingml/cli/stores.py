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
def recording(
    data_dir: Path | None, store_url: str | None
) -> Iterator[tuple[Store | None, Callable[[Predicted], None]]]:
    """The store, and a function that has a predicted task recorded, so that corrections of it are understood.

    Where the database cannot be used it says so, there is no store, and the function does nothing:
    predictions are worth having without.
    """
    from groundingml.labelstudio.capture import Capture
    from groundingml.labelstudio.prediction_records import record_in
    from groundingml.labelstudio.remembered_prompts import learn_prompts
    from groundingml.store import StoreError, default_data_dir, default_url, open_store

    try:
        store = open_store(store_url or default_url((data_dir or default_data_dir()).absolute()))
    except StoreError as error:
        typer.echo(f"groundingml: {error} What is predicted is not recorded here.", err=True)
        yield None, lambda predicted: None
        return
    capture = Capture(store, learn_prompts)
    capture.start()
    try:
        yield store, record_in(capture)
    finally:
        capture.close()
        store.close()


def what_serves(
    store: Store | None, data_dir: Path | None, project: int
) -> tuple[str | None, dict[str, str]]:
    """What a server with this data adds for a project: the folder of its own version (None for the base
    model), and its remembered prompts."""
    from groundingml.learning.versions import VersionError, open_version
    from groundingml.store import default_data_dir
    from groundingml.store.prompts import prompts
    from groundingml.store.versions import serving_version

    if store is None:
        return None, {}
    with store.read() as session:
        version = serving_version(session, str(project))
        remembered = {prompt.control: prompt.text for prompt in prompts(session, str(project))}
    if version is None:
        return None, remembered
    try:
        return str(
            open_version((data_dir or default_data_dir()).absolute() / version.folder).path
        ), remembered
    except VersionError as error:
        fail(f"version {version.id}, which serves project {project}, cannot be used: {error}")


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what is wrong, and end."""
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(code)
