"""What is asked of the table of projects."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from groundingml.store.tables import Project
from groundingml.store.times import utc_now


def put_project(session: Session, project: str, label_config: str, extra_params: Any) -> None:
    """Note a project's label config and connection, as Label Studio has just described them."""
    row = session.get(Project, project)
    if row is None:
        row = Project(project=project)
        session.add(row)
    row.label_config, row.extra_params, row.updated_at = label_config, extra_params, utc_now()


def projects(session: Session) -> list[Project]:
    """All projects, the one set up last first."""
    return list(session.scalars(select(Project).order_by(Project.updated_at.desc(), Project.project)))
