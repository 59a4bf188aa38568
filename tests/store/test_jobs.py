"""Labelling jobs: one owner at a time, whatever happens to it."""

from __future__ import annotations

import datetime

from groundingml.store import Store, utc_now
from groundingml.store.jobs import (
    MOST_ATTEMPTS,
    cancel_job,
    claim_job,
    enqueue_job,
    finish_job,
    newest_jobs,
    renew_job,
)
from groundingml.store.runs import Owner
from groundingml.store.tables import Job

ONE, OTHER, ELSEWHERE = Owner("here", 1), Owner("here", 2), Owner("there", 1)
OPTIONS = {"only_missing": False, "filters": [], "batch": 50}


def alive(pid: int) -> bool:
    return True


def dead(pid: int) -> bool:
    return False


def ask(store: Store, project: str = "7") -> int:
    with store.begin() as session:
        return enqueue_job(session, project, OPTIONS).id


def claim(store: Store, owner: Owner = ONE, lives=alive) -> Job | None:
    with store.begin() as session:
        return claim_job(session, owner, lives)


def state(store: Store, job: int) -> tuple[str, str | None]:
    with store.read() as session:
        row = session.get_one(Job, job)
        return row.state, row.message


def test_the_same_is_not_asked_for_twice(store: Store) -> None:
    first = ask(store)
    assert ask(store) == first
    assert ask(store, "8") != first
    with store.begin() as session:
        assert enqueue_job(session, "7", {**OPTIONS, "only_missing": True}).id != first


def test_each_job_has_one_owner(store: Store) -> None:
    first, second = ask(store), ask(store, "8")
    claimed = [claim(store, owner) for owner in (ONE, OTHER, ELSEWHERE)]
    assert [None if job is None else job.id for job in claimed] == [first, second, None]


def test_a_dead_owner_is_replaced_and_may_write_nothing(store: Store) -> None:
    job = ask(store)
    assert claim(store, ONE) is not None
    assert claim(store, ELSEWHERE, dead) is None, "whether it lives cannot be told from another host"
    taken = claim(store, OTHER, dead)
    assert taken is not None
    assert (taken.id, taken.attempts) == (job, 2)
    with store.begin() as session:
        assert renew_job(session, job, ONE, 1, {}) == "lost"
        finish_job(session, job, ONE, 1, "failed", "late", None)
        assert renew_job(session, job, OTHER, 2, {"done": 1}) == "go on"
    assert state(store, job) == ("running", None)


def test_an_owner_elsewhere_is_replaced_when_its_lease_ends(store: Store) -> None:
    job = ask(store)
    claim(store, ELSEWHERE)
    assert claim(store, ONE) is None
    with store.begin() as session:
        session.get_one(Job, job).lease_until = utc_now() - datetime.timedelta(seconds=1)
    taken = claim(store, ONE)
    assert taken is not None
    assert taken.id == job


def test_a_job_that_is_given_back_was_no_failed_attempt(store: Store) -> None:
    job = ask(store)
    claim(store, ONE)
    with store.begin() as session:
        finish_job(session, job, ONE, 1, "queued", "goes on", {"labelled": 3})
    again = claim(store, OTHER)
    assert again is not None
    assert again.attempts == 1


def test_a_job_that_kills_its_processes_is_given_up(store: Store) -> None:
    job = ask(store)
    for _ in range(MOST_ATTEMPTS):
        assert claim(store, ONE, dead) is not None
    assert claim(store, ONE, dead) is None
    ended, message = state(store, job)
    assert ended == "failed"
    assert message is not None
    assert "given up" in message


def test_cancelling(store: Store) -> None:
    waiting, running = ask(store), ask(store, "8")
    with store.begin() as session:
        cancelled = cancel_job(session, waiting, "here", alive)
        assert cancelled is not None
        assert cancelled.state == "cancelled"
    claim(store, ONE)
    with store.begin() as session:
        cancel_job(session, running, "here", alive)
        assert renew_job(session, running, ONE, 1, {}) == "cancel"
        finish_job(session, running, ONE, 1, "cancelled", "3 of 9", None)
    assert state(store, running) == ("cancelled", "3 of 9")
    with store.begin() as session:
        assert cancel_job(session, 999, "here", alive) is None
    with store.read() as session:
        assert [job.id for job in newest_jobs(session)] == [running, waiting]
