"""Which version serves, and what a rollback returns to: on both databases."""

from __future__ import annotations

import pytest

from groundingml.store import Store
from groundingml.store.tables import Version
from groundingml.store.versions import (
    VersionChangeError,
    add_version,
    promote_version,
    roll_back,
    serving_version,
    serving_versions,
    version_with_digest,
    versions_of,
)


def new_version(store: Store, digest: str, project: str = "7") -> int:
    with store.begin() as session:
        folder = f"versions/{project}/{digest}"
        return add_version(
            session,
            project=project,
            digest=digest,
            folder=folder,
            run_id=None,
            metrics={},
            thresholds={},
        ).id


def promote(store: Store, version: int) -> None:
    with store.begin() as session:
        row = session.get(Version, version)
        assert row is not None
        promote_version(session, row, "better")


def back(store: Store, project: str = "7") -> int | None:
    with store.begin() as session:
        former = roll_back(session, project, "worse in practice")[1]
        return None if former is None else former.id


def serving(store: Store, project: str = "7") -> int | None:
    with store.read() as session:
        version = serving_version(session, project)
        return None if version is None else version.id


def test_projects_are_kept_apart(store: Store) -> None:
    one, other = new_version(store, "aa"), new_version(store, "bb", "8")
    promote(store, one)
    assert (serving(store, "7"), serving(store, "8")) == (one, None)
    promote(store, other)
    with store.read() as session:
        assert {project: row.id for project, row in serving_versions(session).items()} == {
            "7": one,
            "8": other,
        }
        assert [row.id for row in versions_of(session, "8")] == [other]
        assert version_with_digest(session, "8", "aa") is None


def test_rolling_back_goes_the_way_back_to_the_base_model(store: Store) -> None:
    first = new_version(store, "aa")
    promote(store, first)
    second = new_version(store, "bb")
    promote(store, second)
    assert back(store) == first == serving(store)
    assert back(store) is None
    assert serving(store) is None
    with pytest.raises(VersionChangeError, match="base model serves project 7"):
        back(store)
    promote(store, second)  # after the base model, so a rollback returns there
    assert back(store) is None


def test_promoting_an_earlier_version_is_a_rollback(store: Store) -> None:
    first = new_version(store, "aa")
    promote(store, first)
    second = new_version(store, "bb")
    promote(store, second)
    promote(store, first)
    assert serving(store) == first
    assert back(store) is None


def test_what_cannot_be_promoted(store: Store) -> None:
    first = new_version(store, "aa")
    promote(store, first)
    with pytest.raises(VersionChangeError, match="serves project 7 already"):
        promote(store, first)
    second = new_version(store, "bb")
    with store.begin() as session:
        for row in versions_of(session):
            row.folder = ""
    with pytest.raises(VersionChangeError, match="files of version 2 have been removed"):
        promote(store, second)
    with store.begin() as session:
        row = session.get(Version, second)
        assert row is not None
        row.folder = "versions/7/bb"
    promote(store, second)
    with pytest.raises(VersionChangeError, match="which served before, have been removed"):
        back(store)
    assert serving(store) == second
