"""Webhook events between the moment they are acknowledged and the moment they have had their effect.

Whoever takes an event does all that follows from it in the same transaction: a process that is killed in
between has done nothing, and the next one takes the event again.
"""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from groundingml.store.tables import InboxEvent
from groundingml.store.times import utc_now

_CAPTURE_LOCK = 7_302_664_212  # PostgreSQL's advisory lock: any number that nobody else uses


def lock_annotations(session: Session) -> None:
    """Until the transaction ends nobody else changes annotations, in no process.

    SQLite's writing transactions have that by themselves.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _CAPTURE_LOCK})


def add_event(session: Session, project: str | None, action: str, payload: dict[str, Any]) -> InboxEvent:
    """Keep an event. `payload` must be free of secrets."""
    event = InboxEvent(project=project, action=action, payload=payload)
    session.add(event)
    return event


def next_event(session: Session) -> InboxEvent | None:
    """The oldest event that nobody has processed; it is this transaction's until that ends."""
    lock_annotations(session)
    return session.scalars(
        select(InboxEvent).where(InboxEvent.processed_at.is_(None)).order_by(InboxEvent.id).limit(1)
    ).first()


def waiting_events(session: Session) -> int:
    """How many events are not processed yet."""
    return session.scalars(
        select(func.count()).select_from(InboxEvent).where(InboxEvent.processed_at.is_(None))
    ).one()


def forget_processed(session: Session, age: datetime.timedelta) -> int:
    """Remove events processed longer than `age` ago, and say how many. Their effects stay."""
    before = utc_now() - age
    # Both conditions, so that NULLs are left alone whatever the database makes of comparing them.
    processed = InboxEvent.processed_at.is_not(None) & (InboxEvent.processed_at < before)
    return session.execute(delete(InboxEvent).where(processed)).rowcount  # type: ignore[attr-defined]
