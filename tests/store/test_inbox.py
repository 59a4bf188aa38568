"""The queue of events, on both databases."""

from __future__ import annotations

import datetime

from sqlalchemy import select

from groundingml.store import Store, utc_now
from groundingml.store.inbox import add_event, forget_processed, next_event, waiting_events
from groundingml.store.tables import InboxEvent


def test_the_oldest_comes_first_and_comes_again_after_a_failure(store: Store) -> None:
    with store.begin() as session:
        for number in range(3):
            add_event(session, "7", f"EVENT_{number}", {"number": number})
    seen = []
    for fails in (True, False, False, False):
        with store.begin() as session:
            event = next_event(session)
            assert event is not None
            seen.append(event.action)
            if fails:
                session.rollback()
                continue
            event.processed_at = utc_now()
    assert seen == ["EVENT_0", "EVENT_0", "EVENT_1", "EVENT_2"]
    with store.read() as session:
        assert waiting_events(session) == 0
    with store.begin() as session:
        assert next_event(session) is None


def test_old_ones_are_forgotten_once_they_are_processed(store: Store) -> None:
    long_ago = utc_now() - datetime.timedelta(days=40)
    with store.begin() as session:
        for processed in (long_ago, utc_now(), None):
            add_event(session, "7", "EVENT", {}).processed_at = processed
    with store.begin() as session:
        assert forget_processed(session, datetime.timedelta(days=30)) == 1
    with store.read() as session:
        assert len(session.scalars(select(InboxEvent)).all()) == 2
