"""kill -9 while events come in: what was acknowledged has had its effect once, whenever the process died."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from groundingml.store import Store
from groundingml.store.tables import Annotation, Correction, InboxEvent

KILLS = 20


@pytest.mark.slow
def test_killed_at_random_moments(
    store: Store, start_process: Callable[[], Any], event: Any, settle: Callable[[Store], int]
) -> None:
    """Four annotators submit and update without a pause while their server is killed over and over."""
    moments = random.Random(7)
    acknowledged: dict[int, int] = {}
    tried: dict[int, int] = {}
    number = iter(range(1, 1_000_000))

    def annotate(client: httpx.Client, over: threading.Event) -> None:
        # The server dies, and its client is closed, in the middle of a request or between two.
        with contextlib.suppress(httpx.TransportError, RuntimeError):
            while not over.is_set():
                mine = next(number)
                for second in (1, 2):
                    tried[mine] = second
                    answer = client.post("/webhook", json=event("ANNOTATION_UPDATED", mine, second, x=second))
                    if answer.status_code == 200:
                        acknowledged[mine] = second

    for kill in range(KILLS):
        process, over = start_process(), threading.Event()
        threads = [threading.Thread(target=annotate, args=(process.client, over)) for _ in range(4)]
        for thread in threads:
            thread.start()
        # Half of them while starting, half with events under way.
        before, deadline = len(acknowledged), time.monotonic() + 60
        while kill % 2 and len(acknowledged) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        over.set()
        for thread in threads:
            thread.join()
    last = start_process()
    events = settle(store)
    last.kill()

    assert len(acknowledged) >= KILLS // 2, "hardly anything was captured between the kills"
    assert sum(acknowledged.values()) <= events <= sum(tried.values())
    with store.read() as session:
        kept = {
            int(row.annotation_id): row.result[0]["value"]["x"] for row in session.scalars(select(Annotation))
        }
        for mine, second in acknowledged.items():
            assert second <= kept[mine] <= tried[mine]
        assert set(kept) <= set(tried)
        doubled = select(Correction.annotation_id).group_by(Correction.annotation_id)
        assert session.scalars(doubled.having(func.count() != 1)).all() == []
        assert session.scalars(select(func.count()).select_from(Correction)).one() == len(kept)
        assert {row.attempts for row in session.scalars(select(InboxEvent))} == {1}
