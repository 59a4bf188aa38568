"""Alembic's environment. `open_store` runs it within a transaction of its own; for writing a migration:

alembic -c groundingml/store/alembic.ini -x url=sqlite:////tmp/empty.sqlite3 revision --autogenerate -m "..."
"""

from alembic import context

from groundingml.store.tables import Table


def _run(connection) -> None:  # type: ignore[no-untyped-def]
    # SQLite cannot alter columns; batch mode copies the table instead.
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    context.run_migrations()


_given = context.config.attributes.get("connection")
if _given is not None:
    _run(_given)
else:
    from sqlalchemy import create_engine

    with create_engine(context.get_x_argument(as_dictionary=True)["url"]).begin() as _connection:
        _run(_connection)
