"""Opening, migrating and sharing the database."""

from __future__ import annotations

import datetime
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select, text

from groundingml.store import Store, StoreError, default_data_dir, default_url, open_store, utc_now
from groundingml.store.tables import InboxEvent, RememberedPrompt, Run, Table


def test_migrations_give_the_tables_that_the_code_has(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_what_was_written_is_there_when_opened_again(store: Store, store_url: str) -> None:
    event = {"action": "ANNOTATION_CREATED", "nested": [1, 2.5, None, "ä"]}
    with store.begin() as session:
        session.add(InboxEvent(project="7", action="ANNOTATION_CREATED", payload=event))
    store.close()
    with open_store(store_url) as again, again.read() as session:
        kept = session.scalars(select(InboxEvent)).one()
        assert (kept.id, kept.project, kept.payload, kept.attempts) == (1, "7", event, 0)
        assert kept.received_at.tzinfo == datetime.timezone.utc
        assert abs((utc_now() - kept.received_at).total_seconds()) < 600


def test_a_block_that_raises_leaves_nothing(store: Store) -> None:
    def fail_after_writing() -> None:
        with store.begin() as session:
            session.add(RememberedPrompt(project="7", control="prompt", text="cat"))
            session.flush()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_after_writing()
    with store.read() as session:
        assert session.scalars(select(RememberedPrompt)).all() == []


def test_times_without_a_zone_are_refused(store: Store) -> None:
    naive = datetime.datetime(2026, 1, 1)
    with pytest.raises(Exception, match="must say its zone"), store.begin() as session:
        session.add(RememberedPrompt(project="7", control="prompt", text="cat", updated_at=naive))


def test_other_zones_come_back_as_utc(store: Store) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    noon = datetime.datetime(2026, 1, 1, 12, tzinfo=zone)
    with store.begin() as session:
        session.add(RememberedPrompt(project="7", control="prompt", text="cat", updated_at=noon))
    with store.read() as session:
        kept = session.scalars(select(RememberedPrompt)).one().updated_at
    assert kept == noon
    assert kept.hour == 10


def test_writers_take_turns(store: Store) -> None:
    """Each reads a number and writes one more; none is lost on SQLite, where begin() takes the write lock."""
    with store.begin() as session:
        session.add(Run(id=1, recipe="head", options={}, trigger="test"))

    def add_ones() -> None:
        for _ in range(20):
            with store.begin() as session:
                run = session.get_one(Run, 1, with_for_update=True)
                run.attempts += 1

    threads = [threading.Thread(target=add_ones) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as session:
        assert session.get_one(Run, 1).attempts == 80


def test_readers_do_not_wait_for_a_writer(store: Store) -> None:
    with store.begin() as writing:
        writing.add(Run(recipe="head", options={}, trigger="test"))
        writing.flush()
        with store.read() as reading:
            assert reading.scalars(select(Run)).all() == []


def test_processes_that_open_an_empty_database_at_once(store_url: str) -> None:
    code = "import sys; from groundingml.store import open_store; open_store(sys.argv[1]).close()"
    started = [subprocess.Popen([sys.executable, "-c", code, store_url]) for _ in range(4)]
    assert [process.wait(120) for process in started] == [0, 0, 0, 0]


def test_an_older_schema_is_brought_up_to_date_with_its_data(store_url: str) -> None:
    """From the first schema on; what a migration adds is checked by the comparison above."""
    from alembic import command
    from alembic.config import Config

    with open_store(store_url) as store:
        with store.engine.begin() as connection:
            Table.metadata.drop_all(connection)
            connection.execute(text("DROP TABLE alembic_version"))
        config = Config()
        folder = Path(sys.modules["groundingml.store"].__path__[0]) / "migrations"
        config.set_main_option("script_location", str(folder))
        with store.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0001")
            connection.execute(
                text("INSERT INTO prompts VALUES ('7', 'prompt', 'cat', '2026-01-01 10:00:00.000000')")
            )
    with open_store(store_url) as store:
        with store.read() as session:
            assert session.scalars(select(RememberedPrompt.text)).all() == ["cat"]
        with store.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, Table.metadata) == []


def test_a_newer_schema_is_refused_and_left_alone(store_url: str) -> None:
    with open_store(store_url) as store, store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"newer groundingml \(its schema is '9999'\)"):
        open_store(store_url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "looks like sqlite"),
        ("mysql://host/name", "looks like sqlite"),
        ("sqlite://", "would forget everything"),
        ("sqlite:////proc/nowhere/file.sqlite3", "cannot be made"),
        ("postgresql://nobody:hunter2@127.0.0.1:1/name", "cannot be used"),
    ],
)
def test_urls_that_do_not_work_say_so(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" * 4000)
    with pytest.raises(StoreError, match="cannot be used: file is not a database"):
        open_store(f"sqlite:///{tmp_path / 'photo.jpg'}")


def test_sqlite_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    url = default_url(tmp_path)
    with open_store(url) as store, store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    assert sqlite3.connect(tmp_path / "groundingml.sqlite3").execute("SELECT count(*) FROM inbox").fetchone()


def test_where_data_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "groundingml"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".local" / "share" / "groundingml"
