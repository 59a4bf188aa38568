"""Versions of a project: which one serves, and what each was measured to be. No row serves: the base model
does."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from groundingml.store.tables import Version
from groundingml.store.times import utc_now


class VersionChangeError(ValueError):
    """A version cannot be promoted or rolled back to. The message says why."""


def serving_version(session: Session, project: str) -> Version | None:
    """The version that serves a project; None for the base model."""
    return session.scalar(select(Version).where(Version.project == project, Version.state == "serving"))


def serving_versions(session: Session) -> dict[str, Version]:
    """Project -> the version that serves it, of all projects that have one."""
    return {one.project: one for one in session.scalars(select(Version).where(Version.state == "serving"))}


def versions_of(session: Session, project: str | None = None) -> list[Version]:
    """All versions, the newest first."""
    query = select(Version).order_by(Version.id.desc())
    if project is not None:
        query = query.where(Version.project == project)
    return list(session.scalars(query))


def version_with_digest(session: Session, project: str, digest: str) -> Version | None:
    """The project's version with this checkpoint digest."""
    return session.scalar(select(Version).where(Version.project == project, Version.digest == digest))


def add_version(
    session: Session,
    *,
    project: str,
    digest: str,
    folder: str,
    run_id: int | None,
    metrics: dict[str, Any],
    thresholds: dict[str, Any],
) -> Version:
    """A measured version that does not serve yet; its parent is the one that serves now."""
    parent = serving_version(session, project)
    version = Version(
        project=project,
        digest=digest,
        folder=folder,
        parent_id=None if parent is None else parent.id,
        run_id=run_id,
        metrics=metrics,
        thresholds=thresholds,
    )
    session.add(version)
    session.flush()
    return version


def reject_version(version: Version, reason: str) -> None:
    """It stays, but does not serve."""
    version.state, version.reason = "rejected", reason


def promote_version(session: Session, version: Version, reason: str) -> Version | None:
    """Let ``version`` serve its project; the one that served until now, None for the base model.

    A rollback returns to that one. Promoting one of the versions that served before it is such a rollback.
    """
    if not version.folder:
        raise VersionChangeError(
            f"the files of version {version.id} have been removed, as those of one of the oldest; train again"
        )
    former = serving_version(session, version.project)
    if former is not None and former.id == version.id:
        raise VersionChangeError(f"version {version.id} serves project {version.project} already")
    if former is not None:
        former.state = "retired"
        session.flush()
    if former is None or version.id not in _ancestors(session, former):
        version.parent_id = None if former is None else former.id
    version.state, version.reason, version.promoted_at = "serving", reason, utc_now()
    return former


def roll_back(session: Session, project: str, reason: str) -> tuple[Version, Version | None]:
    """Let the version serve again that served before the present one; (the one taken out, the one that serves
    now, None for the base model)."""
    present = serving_version(session, project)
    if present is None:
        raise VersionChangeError(f"the base model serves project {project}: there is nothing to roll back")
    former = None if present.parent_id is None else session.get(Version, present.parent_id)
    if former is not None and not former.folder:
        raise VersionChangeError(
            f"the files of version {former.id}, which served before, have been removed; promote another one"
        )
    present.state, present.reason = "retired", reason
    session.flush()
    if former is not None:
        former.state, former.promoted_at = "serving", utc_now()
    return present, former


def _ancestors(session: Session, version: Version) -> set[int]:
    """The versions that served before it, one after the other."""
    found: set[int] = set()
    parent = version.parent_id
    while parent is not None and parent not in found:
        found.add(parent)
        row = session.get(Version, parent)
        parent = None if row is None else row.parent_id
    return found
