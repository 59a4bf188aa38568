"""Keeping webhook events before they are acknowledged, many of them in one transaction.

A disk needs some milliseconds to make a transaction last. Events that arrive meanwhile wait for the next one
and share it, so the wait stays two transactions long however many arrive.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from sqlalchemy.exc import SQLAlchemyError

from groundingml.labelstudio.event_payload import parts_of, payload_of, project_of
from groundingml.store import Store, StoreError
from groundingml.store.inbox import add_event

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 200
Event: TypeAlias = tuple[str | None, str, dict[str, Any]]
"""Project, action, and what is kept."""
_Waiting: TypeAlias = tuple[bytes, "concurrent.futures.Future[None]"]


class BadEvent(ValueError):
    """A webhook's body is not what Label Studio sends. The message says what is wrong."""


class NotKept(RuntimeError):
    """An event could not be kept, so it must not be acknowledged. The message says why."""


class InboxWriter:
    """A thread that writes events to the inbox. ``on_event`` is called after each transaction."""

    def __init__(self, store: Store, on_event: Callable[[], object] = lambda: None) -> None:
        self._store = store
        self._on_event = on_event
        self._queue: queue.Queue[_Waiting | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="inbox writer", daemon=True)
        self._is_closed = False
        self._is_broken = False

    def start(self) -> None:
        """Begin to take events."""
        self._thread.start()

    def close(self) -> None:
        """Write what is waiting, then end."""
        self._is_closed = True
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join(30)

    async def keep(self, body: bytes) -> None:
        """Return once the event in a webhook's body is in the database.

        Raises:
            BadEvent: it is no event.
            NotKept: the database cannot take it.
        """
        if self._is_closed:
            raise NotKept("the server is stopping")
        kept: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._queue.put((body, kept))
        await asyncio.wrap_future(kept)

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch = [first]
            is_last = False
            while len(batch) < MOST_AT_ONCE and not self._queue.empty():
                one = self._queue.get_nowait()
                if one is None:
                    is_last = True
                    break
                batch.append(one)
            self._write(batch)
            if is_last:
                return

    def _write(self, batch: list[_Waiting]) -> None:
        events = []
        for body, kept in batch:
            event = _read(body, kept)
            if event is not None:
                events.append((event, kept))
        if not events:
            return
        try:
            with self._store.begin() as session:
                for (project, action, payload), _ in events:
                    for part in parts_of(payload):
                        add_event(session, project, action, part)
        except (SQLAlchemyError, StoreError) as error:
            reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
            if not self._is_broken:
                logger.error("Corrections cannot be kept: %s", reason)
            self._is_broken = True
            for _, kept in events:
                _tell(kept, NotKept(f"the correction could not be kept: {reason}"))
            return
        if self._is_broken:
            logger.info("Corrections are kept again; `groundingml sync` repairs what was missed")
        self._is_broken = False
        for _, kept in events:
            _tell(kept, None)
        self._on_event()


def _read(body: bytes, kept: concurrent.futures.Future[None]) -> Event | None:
    try:
        return read_event(body)
    except BadEvent as error:
        _tell(kept, error)
        return None


def read_event(body: bytes) -> Event:
    """Project, action and what is kept, from the body of a webhook.

    Raises:
        BadEvent: it is no JSON object, or does not say what happened.
    """
    try:
        decoded = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadEvent("The body is not JSON.") from error
    if not isinstance(decoded, dict):
        raise BadEvent("The body must be a JSON object.")
    action = decoded.get("action")
    if not isinstance(action, str) or not action:
        raise BadEvent('The body has no "action".')
    return project_of(decoded), action[:100].replace("\0", ""), payload_of(decoded)


def _no_number(text: str) -> None:
    """NaN and the infinities are no JSON, and PostgreSQL takes none."""


def _tell(kept: concurrent.futures.Future[None], error: Exception | None) -> None:
    # The client may have hung up, and its request with it.
    if not kept.set_running_or_notify_cancel():
        return
    if error is None:
        kept.set_result(None)
    else:
        kept.set_exception(error)
