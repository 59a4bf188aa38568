"""The process of a training run: started beside the server, gentle to it, and safe to kill."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from groundingml.learning.lease import RunLease, RunStopped, wait_for_turn
from groundingml.store import Store
from groundingml.store.runs import Owner, end_run, release_run
from groundingml.store.tables import Run

logger = logging.getLogger(__name__)

NICENESS = 10
LOG = "log.txt"


def default_threads() -> int:
    """All processor cores but one, which is left to who answers people."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def start_process(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], threads: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a run's process, in a session of its own, with its output in the run's folder.

    environment: added to this process's; it holds what must not be seen in the process list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = str(threads or default_threads())
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **environment, "OMP_NUM_THREADS": count, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the server's terminal is not meant for it
        )


def run_here(store: Store, run_id: int, work: Callable[[Run, RunLease], str]) -> int:
    """Claim a run and do its ``work`` (which returns how it ended, and has noted that in the store), in the
    main thread. The exit status: 0 unless it failed.

    SIGTERM and Ctrl-C end it so that it can go on later.
    """
    os.nice(NICENESS)
    owner = Owner.this_process()
    stopped = threading.Event()
    lease: RunLease | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        stopped.set()
        if lease is not None:
            lease.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    claim = wait_for_turn(store, run_id, owner, stopped)
    if claim.outcome != "claimed":
        logger.info("Run %d is not for this process: %s", run_id, claim.outcome)
        return 0
    with store.read() as session:
        run = session.get(Run, run_id)
    assert run is not None
    logger.info(
        "Run %d for project %s, attempt %d, process %d", run_id, run.project, claim.attempt, owner.pid
    )
    lease = RunLease(store, run_id, owner, claim.attempt)
    with lease:
        if stopped.is_set():
            lease.stop()
        return _do(store, run, lease, work)


def _do(store: Store, run: Run, lease: RunLease, work: Callable[[Run, RunLease], str]) -> int:
    try:
        logger.info("Run %d: %s", run.id, work(run, lease))
        return 0
    except RunStopped as stop:
        if stop.reason == "lost":
            logger.warning("Run %d goes on in another process", run.id)
            return 0
        with store.begin() as session:
            row = session.get(Run, run.id)
            assert row is not None
            if stop.reason == "cancel":
                end_run(session, row, "cancelled", "cancelled")
            else:
                release_run(session, row, "interrupted; it goes on from its last checkpoint")
        logger.info("Run %d: %s", run.id, "cancelled" if stop.reason == "cancel" else "interrupted")
        return 0
    except Exception as error:
        logger.exception("Run %d failed", run.id)
        said = (
            str(error).strip() if isinstance(error, ValueError | OSError | RuntimeError | ImportError) else ""
        )
        with store.begin() as session:
            row = session.get(Run, run.id)
            if row is not None and (row.pid, row.attempts) == (lease.owner.pid, lease.attempt):
                end_run(session, row, "failed", said or f"{type(error).__name__}; its log says more")
        return 1
