"""Opening the database: connection settings, transactions, and bringing its schema up to date."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

BUSY_TIMEOUT_S = 30.0
"""How long a transaction waits for another one's lock on a SQLite file."""

_MIGRATIONS = Path(__file__).with_name("migrations")
_MIGRATION_LOCK = 7_302_664_211  # PostgreSQL's advisory lock: any number that nobody else uses
_WRITES = {"groundingml_writes": True}


class StoreError(RuntimeError):
    """The database cannot be used. The message says why, and what to do."""


class Store:
    """An open database with a schema that this version knows. May be used from several threads.

    After a fork, open another one.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(**_WRITES)
        # Waiting for SQLite's own lock means to sleep and to look again; threads can do better.
        self._turn = threading.Lock()
        self._next = threading.Lock()

    @property
    def url(self) -> str:
        """Where it is, without the password."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def begin(self) -> Iterator[Session]:
        """One transaction that may write: committed at the end of the block, undone if the block raises.

        On SQLite it holds the one write lock from its beginning, so that what it reads is still true when
        it writes. Keep it short.

        Raises:
            StoreError: another thread of this process has held the write lock for too long.
        """
        with self._taking_turns(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def _taking_turns(self) -> Iterator[None]:
        if self.engine.dialect.name != "sqlite":
            yield
            return
        # Who waits longest holds `_next`, so that a thread with one transaction after the other lets others
        # in between.
        busy = StoreError(f"The database {self.url} has been busy for {BUSY_TIMEOUT_S:.0f} s.")
        if not self._next.acquire(timeout=BUSY_TIMEOUT_S):
            raise busy
        try:
            if not self._turn.acquire(timeout=BUSY_TIMEOUT_S):
                raise busy
        finally:
            self._next.release()
        try:
            yield
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that only reads; waits for nobody."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(url: str | URL) -> Store:
    """Open the database, creating it or bringing an older one up to date.

    Args:
        url: ``sqlite:////folder/file.sqlite3`` or ``postgresql://user:password@host/database``.

    Raises:
        StoreError: the URL is none, its server cannot be reached, or its schema is of a newer version.
    """
    parsed = _parse(url)
    engine = _engine(parsed)
    shown = parsed.render_as_string(hide_password=True)
    try:
        with engine.execution_options(**_WRITES).begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK})
            _migrate(connection, shown)
    except DBAPIError as error:
        engine.dispose()
        raise StoreError(f"The database {shown} cannot be used: {_first_line(error.orig)}.") from error
    except BaseException:
        engine.dispose()
        raise
    return Store(engine)


def _parse(url: str | URL) -> URL:
    wanted = (
        "A database URL looks like sqlite:////folder/file.sqlite3 or postgresql://user:password@host/name"
    )
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StoreError(
            f"{wanted}; this one cannot be read."
        ) from error  # it may hold a password: not shown
    backend = parsed.get_backend_name()
    if backend == "postgresql" and parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise StoreError(f"{wanted}. SQLite without a file would forget everything.")
        folder = Path(parsed.database).absolute().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    elif backend != "postgresql":
        raise StoreError(f"{wanted}, not {backend}://...")
    return parsed


def _engine(url: URL) -> Engine:
    arguments: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        arguments["connect_args"] = {"timeout": BUSY_TIMEOUT_S}
    else:
        arguments["pool_pre_ping"] = True  # a server that was restarted costs no request
        arguments["connect_args"] = {"connect_timeout": 10}
    try:
        engine = create_engine(url, **arguments)
    except ModuleNotFoundError as error:
        raise StoreError(
            f"PostgreSQL needs the package {error.name!r}: pip install 'groundingml[postgres]'"
        ) from error
    except (NoSuchModuleError, SQLAlchemyError) as error:
        raise StoreError(f"The database URL cannot be used: {_first_line(error)}.") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    # Python's driver would begin transactions late and leave table changes out of them; `_begin_sqlite`
    # begins them instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
        cursor.execute("PRAGMA synchronous = FULL")  # what was answered is on the disk
        cursor.execute("PRAGMA foreign_keys = ON")
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("groundingml_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(connection: Connection, shown: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == known.get_current_head():
        return
    if current is not None and current not in {script.revision for script in known.walk_revisions()}:
        raise StoreError(
            f"The database {shown} was written by a newer groundingml (its schema is {current!r}). Install "
            "that version or a newer one, or name another database."
        )
    command.upgrade(config, "head")


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
