"""Capturing corrections while the server runs: webhooks are kept at once, and have their effect soon after.

Predictions are recorded too, since a correction is the difference to one. That neither slows down nor fails
a prediction: what cannot be written is counted, and `groundingml sync` gets it from Label Studio.
"""

from __future__ import annotations

import logging
import queue
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from groundingml.labelstudio.events import Learn
from groundingml.labelstudio.inbox_processing import forget_old_events, process_inbox
from groundingml.labelstudio.inbox_writer import InboxWriter
from groundingml.store import Store, StoreError
from groundingml.store.predictions import NewPrediction, record_predictions

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How often to look for events that another process has kept and left."""
WAIT_AFTER_TROUBLE_S = 5.0
MOST_WAITING = 20_000
"""Predictions that may wait to be written."""
_AT_ONCE = 10
_HOUR_S = 3600.0


class Capture:
    """Two threads: one keeps events, one processes them and records predictions."""

    def __init__(self, store: Store, learn: Learn | None = None) -> None:
        self._store = store
        self._learn = learn
        self._predictions: queue.Queue[NewPrediction] = queue.Queue(MOST_WAITING)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._is_broken = False
        self.writer = InboxWriter(store, self._wake.set)
        self.lost = 0
        """Predictions that could not be recorded."""

    def start(self) -> None:
        """Begin."""
        self.writer.start()
        self._thread.start()

    def close(self) -> None:
        """Write what is waiting, process what was kept, then end."""
        self.writer.close()
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(30)

    def record(self, prediction: NewPrediction) -> None:
        """Have a prediction recorded soon. Returns at once, whatever happens."""
        try:
            self._predictions.put_nowait(prediction)
        except queue.Full:
            self._lose(1, "too many are waiting to be written")
        else:
            self._wake.set()

    @property
    def waiting(self) -> int:
        """How many predictions are not written yet."""
        return self._predictions.qsize()

    def _run(self) -> None:
        cleaned = time.monotonic() - _HOUR_S
        while True:
            is_last = self._stop.is_set()
            self._wake.clear()
            pause = LOOK_EVERY_S
            try:
                # First, so that the corrections of an annotation know what had been predicted.
                self._write_predictions()
                process_inbox(self._store, self._learn, self._has_predictions)
                if time.monotonic() - cleaned >= _HOUR_S:
                    forget_old_events(self._store)
                    cleaned = time.monotonic()
                self._is_broken = False
            except (SQLAlchemyError, StoreError) as error:
                if not self._is_broken:
                    logger.error("Corrections wait, since the database has trouble: %s", _reason(error))
                self._is_broken = True
                pause = WAIT_AFTER_TROUBLE_S
            if is_last:
                return
            if self._is_broken:
                self._stop.wait(pause)
            else:
                self._wake.wait(pause)

    def _has_predictions(self) -> bool:
        return not self._predictions.empty()

    def _write_predictions(self) -> None:
        while not self._predictions.empty():
            some: list[NewPrediction] = []
            while len(some) < _AT_ONCE and not self._predictions.empty():
                some.append(self._predictions.get_nowait())
            try:
                with self._store.begin() as session:
                    record_predictions(session, some)
            except (SQLAlchemyError, StoreError) as error:
                self._lose(len(some), _reason(error))

    def _lose(self, count: int, reason: str) -> None:
        if self.lost == 0:
            logger.error(
                "Predictions are made but not recorded, so that corrections of them are not understood until "
                "`groundingml sync`: %s",
                reason,
            )
        self.lost += count


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).partition("\n")[0]
