"""Events that were acknowledged have their effect: one at a time, in the order they came, each exactly once.

An event and all that follows from it are one transaction, so a process that is killed at any moment leaves an
event either untouched or done. Several processes on one store take turns.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from groundingml.labelstudio.events import EventError, Learn, apply_event
from groundingml.store import Store, StoreError, utc_now
from groundingml.store.inbox import forget_processed, next_event
from groundingml.store.tables import InboxEvent

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
"""An event that fails so often is set aside, with its error, so that it does not hold up the others."""
KEPT_FOR = datetime.timedelta(days=30)
"""How long processed events are kept: to be looked at when something is odd."""


def process_inbox(
    store: Store, learn: Learn | None = None, should_stop: Callable[[], bool] = lambda: False
) -> int:
    """Process what waits; how many events that were.

    Raises:
        SQLAlchemyError, StoreError: the database cannot be used now. Nothing is lost by that.
    """
    count = 0
    while not should_stop() and _process_next(store, learn):
        count += 1
    return count


def forget_old_events(store: Store) -> None:
    """Remove events that were processed long ago."""
    with store.begin() as session:
        forget_processed(session, KEPT_FOR)


def _process_next(store: Store, learn: Learn | None) -> bool:
    event_id: int | None = None
    try:
        with store.begin() as session:
            event = next_event(session)
            if event is None:
                return False
            event_id = event.id
            apply_event(session, event, learn)
            event.attempts += 1
            event.processed_at, event.error = utc_now(), None
    except EventError as error:
        _set_aside(store, event_id, str(error), give_up=True)
    except (SQLAlchemyError, StoreError) as error:
        if _is_the_database(error):
            raise
        logger.exception("Event %s could not be processed", event_id)
        _set_aside(store, event_id, str(error).partition("\n")[0])
    except Exception as error:
        logger.exception("Event %s could not be processed", event_id)
        _set_aside(store, event_id, f"{type(error).__name__}: {error}")
    return True


def _is_the_database(error: Exception) -> bool:
    """Whether the database itself has trouble, rather than what was to be written into it."""
    from sqlalchemy.exc import DataError, IntegrityError, StatementError

    if isinstance(error, DataError | IntegrityError):
        return False
    # A value that cannot be bound is a plain StatementError; whatever the database said is a subclass.
    return type(error) is not StatementError


def _set_aside(store: Store, event_id: int | None, reason: str, *, give_up: bool = False) -> None:
    if event_id is None:
        return
    with store.begin() as session:
        event = session.get(InboxEvent, event_id, with_for_update=True)
        if event is None or event.processed_at is not None:
            return
        event.attempts += 1
        event.error = reason[:1000].replace("\0", "")
        if give_up or event.attempts >= MOST_ATTEMPTS:
            event.processed_at = utc_now()
            logger.warning("Event %d (%s) is set aside: %s", event_id, event.action, event.error)
