"""Who may run what: on both databases."""

from __future__ import annotations

import datetime
import threading

import pytest

from groundingml.store import Store, utc_now
from groundingml.store.runs import (
    MOST_ATTEMPTS,
    STALE_S,
    Claim,
    Owner,
    cancel_run,
    claim_run,
    end_run,
    enqueue_run,
    is_owned,
    newest_runs,
    release_run,
    renew_run,
    runs_without_owner,
    unfinished_runs,
)
from groundingml.store.tables import Run

ONE, TWO = Owner(Owner.this_process().host, 11), Owner(Owner.this_process().host, 22)
ELSEWHERE = Owner("elsewhere", 33)


def lives(*pids: int) -> object:
    return lambda pid: pid in pids


def new_run(store: Store, project: str = "7", device: str = "cpu") -> int:
    with store.begin() as session:
        return enqueue_run(session, project, "command", {"device": device}, "head").id


def claim(store: Store, run: int, owner: Owner, *alive: int) -> Claim:
    with store.begin() as session:
        return claim_run(session, run, owner, lambda pid: pid in alive)


def read(store: Store, run: int) -> Run:
    with store.read() as session:
        found = session.get(Run, run)
        assert found is not None
        return found


def test_one_run_of_a_project_is_enough(store: Store) -> None:
    first = new_run(store)
    assert new_run(store) == first
    assert new_run(store, "8") != first
    with store.begin() as session:
        cancel_run(session, first, lambda pid: False)
    second = new_run(store)
    assert second not in (first,)
    with store.read() as session:
        assert [run.id for run in newest_runs(session, "7")] == [second, first]
        assert [run.id for run in unfinished_runs(session, "7")] == [second]
    assert read(store, second).folder == f"runs/{second}"


def test_a_run_belongs_to_one_process(store: Store) -> None:
    run = new_run(store)
    assert claim(store, run, ONE, 11, 22) == Claim("claimed", attempt=1)
    assert claim(store, run, TWO, 11, 22).outcome == "taken"
    with store.begin() as session:
        assert renew_run(session, run, ONE, 1, {"phase": "training", "done": 3}) == "go on"
        assert renew_run(session, run, TWO, 1, None) == "lost"
        assert renew_run(session, run, ONE, 2, None) == "lost"
    assert read(store, run).progress == {"phase": "training", "done": 3}
    assert claim(store, run, TWO, 22) == Claim("claimed", attempt=2)  # 11 has died
    with store.begin() as session:
        assert renew_run(session, run, ONE, 1, None) == "lost"


@pytest.mark.parametrize(("age_s", "outcome"), [(STALE_S - 20, "taken"), (STALE_S + 1, "claimed")])
def test_another_hosts_process_lives_while_it_says_so(store: Store, age_s: float, outcome: str) -> None:
    run = new_run(store)
    assert claim(store, run, ELSEWHERE).outcome == "claimed"
    with store.begin() as session:
        row = session.get(Run, run)
        assert row is not None
        row.heartbeat_at = utc_now() - datetime.timedelta(seconds=age_s)
    assert claim(store, run, ONE, 11).outcome == outcome


def test_a_device_trains_one_run_at_a_time(store: Store) -> None:
    first, second, third = new_run(store), new_run(store, "8"), new_run(store, "9", "cuda:0")
    assert claim(store, first, ONE, 11, 22).outcome == "claimed"
    assert claim(store, second, TWO, 11, 22) == Claim("waiting", waits_for=first)
    assert f"waits for run {first}" in (read(store, second).message or "")
    with store.read() as session:  # it waits, and has its process: nobody else is to start one
        assert is_owned(read(store, second), lambda pid: pid in (11, 22))
        assert [run.id for run in runs_without_owner(session, lambda pid: pid in (11, 22))] == [third]
    assert claim(store, third, ELSEWHERE).outcome == "claimed"
    with store.begin() as session:
        row = session.get(Run, first)
        assert row is not None
        end_run(session, row, "done", "promoted")
    assert claim(store, second, TWO, 11, 22).outcome == "claimed"
    assert read(store, second).message is None


def test_many_processes_at_once_get_one_run(store: Store) -> None:
    runs = [new_run(store, str(project)) for project in range(3)]
    outcomes: list[str] = []
    barrier = threading.Barrier(12)

    def compete(number: int) -> None:
        barrier.wait()
        owner = Owner(ONE.host, 100 + number)
        with store.begin() as session:
            outcomes.append(claim_run(session, runs[number % 3], owner, lambda pid: True).outcome)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("claimed") == 1
    assert outcomes.count("waiting") == 2
    assert outcomes.count("taken") == 9


def test_cancelling(store: Store) -> None:
    waiting, running = new_run(store), new_run(store, "8")
    assert claim(store, running, ONE, 11).outcome == "claimed"
    with store.begin() as session:
        cancel_run(session, waiting, lambda pid: pid == 11)
        cancel_run(session, running, lambda pid: pid == 11)
        assert cancel_run(session, 999, lambda pid: True) is None
    assert read(store, waiting).state == "cancelled"
    assert read(store, running).state == "running"
    with store.begin() as session:
        assert renew_run(session, running, ONE, 1, None) == "cancel"
    assert claim(store, waiting, TWO, 22) == Claim("ended")


def test_what_never_ends_is_given_up(store: Store) -> None:
    run = new_run(store)
    for attempt in range(MOST_ATTEMPTS):
        assert claim(store, run, Owner(ONE.host, attempt)) == Claim("claimed", attempt=attempt + 1)
    assert claim(store, run, TWO).outcome == "ended"
    row = read(store, run)
    assert (row.state, row.pid) == ("failed", None)
    assert "given up after 5 attempts" in (row.message or "")


def test_an_interrupted_run_may_begin_again_for_ever(store: Store) -> None:
    run = new_run(store)
    for _ in range(MOST_ATTEMPTS + 2):
        assert claim(store, run, ONE, 11).outcome == "claimed"
        with store.begin() as session:
            row = session.get(Run, run)
            assert row is not None
            release_run(session, row, "interrupted")
    assert read(store, run).state == "queued"
