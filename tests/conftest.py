"""What tests of all layers share: where the pictures and the optional data are."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from groundingml.store import Store

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_reaches_children() -> None:
    """A shell starts background commands with Ctrl-C ignored; the tests' own processes would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands and servers of tests, in processes of their own too, leave nothing in the user's data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
        yield


@pytest.fixture(scope="session")
def photo_dir() -> Path:
    """The photos that ship with the repository (see examples/photos/CREDITS.md)."""
    return REPOSITORY / "examples" / "photos"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Key lists, captured requests and photos that cannot be redistributed; tests of them skip elsewhere."""
    folder = Path(os.environ.get("GROUNDINGML_TEST_DATA", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder} (set GROUNDINGML_TEST_DATA to its folder)")
    return folder


def _postgresql_module() -> ModuleType:
    # Tests are imported by file, so they cannot import each other by name.
    spec = importlib.util.spec_from_file_location("tests_postgresql", REPOSITORY / "tests" / "postgresql.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A running PostgreSQL; tests skip where it is not installed."""
    with _postgresql_module().running_postgresql() as url:
        yield url


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """An empty database of that PostgreSQL."""
    return _postgresql_module().empty_database(postgresql_server)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite3'}"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """The store on both databases: a SQLite file and a database of a real PostgreSQL."""
    from groundingml.store import open_store

    with open_store(store_url) as opened:
        yield opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no GPU, saying so."""
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is false")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
