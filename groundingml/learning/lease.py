"""A process's hold on a run: renewed in the background, with the progress to show; it brings wishes to stop
back."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any, Literal, TypeAlias

from sqlalchemy.exc import SQLAlchemyError

from groundingml.learning.versions import process_lives
from groundingml.store import Store
from groundingml.store.runs import STALE_S, Claim, Owner, claim_run, renew_run

logger = logging.getLogger(__name__)

RENEW_EVERY_S = 2.0
ASK_AGAIN_S = 1.0

Reason: TypeAlias = Literal["cancel", "lost", "stop"]


class RunStopped(Exception):
    """A run ends before its end: somebody cancelled it, another process took it over, or this one shall
    stop."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class RunLease:
    """Holds a claimed run while entered.

    ``report`` says how far it is; ``check`` raises RunStopped once it is to stop; ``stop`` is what a signal
    handler calls.
    """

    def __init__(self, store: Store, run_id: int, owner: Owner, attempt: int) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.owner = owner
        self._store = store
        self._reason: Reason | None = None
        self._progress: dict[str, Any] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="run lease", daemon=True)
        self._renewed = time.monotonic()

    def __enter__(self) -> RunLease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def report(self, phase: str, done: int = 0, total: int = 0, **details: Any) -> None:
        """Note the progress, to be written at the next renewal, and stop here if that is wished."""
        self._progress = {"phase": phase, "done": done, "total": total, **details}
        self.check()

    @property
    def reason(self) -> Reason | None:
        """Why to stop; None for going on."""
        return self._reason

    def check(self) -> None:
        """Raises RunStopped when the run is to stop."""
        if self._reason is not None:
            raise RunStopped(self._reason)

    def stop(self) -> None:
        """The process was asked to end."""
        self._reason = self._reason or "stop"

    def _renew(self) -> None:
        while True:
            try:
                with self._store.begin() as session:
                    answer = renew_run(session, self.run_id, self.owner, self.attempt, self._progress)
                self._renewed = time.monotonic()
                if answer != "go on":
                    self._reason = answer
            except SQLAlchemyError as error:
                logger.warning("Run %d: its state could not be written: %s", self.run_id, error)
                if time.monotonic() - self._renewed > STALE_S:
                    self._reason = "lost"  # others take it for dead by now
            if self._ended.wait(RENEW_EVERY_S):
                return


def wait_for_turn(store: Store, run_id: int, owner: Owner, stopped: threading.Event) -> Claim:
    """Claim a run, waiting while its device trains another one. Gives up waiting when ``stopped`` is set."""
    while True:
        with store.begin() as session:
            claim = claim_run(session, run_id, owner, process_lives)
        if claim.outcome != "waiting" or stopped.wait(ASK_AGAIN_S):
            return claim
