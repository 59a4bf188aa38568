"""Times are UTC and know it, in every database."""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import DateTime
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


def utc_now() -> datetime.datetime:
    """The time now, in UTC, to the microsecond."""
    return datetime.datetime.now(datetime.timezone.utc)


class UtcDateTime(TypeDecorator[datetime.datetime]):
    """A time with its zone; SQLite, which has none, keeps UTC.

    Raises:
        ValueError: for a time without a zone, whose meaning would be a guess.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time must say its zone, got {value!r}")
        value = value.astimezone(datetime.timezone.utc)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            return value.replace(tzinfo=datetime.timezone.utc)
        return value.astimezone(datetime.timezone.utc)
