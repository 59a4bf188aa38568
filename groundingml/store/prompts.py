"""What is asked of the table of remembered prompts."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from groundingml.store.tables import RememberedPrompt
from groundingml.store.times import utc_now


@dataclass(frozen=True)
class Prompt:
    """A remembered prompt: of which project, typed in which control, and since when."""

    project: str
    control: str
    text: str
    updated_at: datetime.datetime


def prompts(session: Session, project: str | None = None) -> list[Prompt]:
    """The remembered prompts of a project, or of all, by project and control."""
    query = select(RememberedPrompt).where(RememberedPrompt.text != "")
    if project is not None:
        query = query.where(RememberedPrompt.project == project)
    rows = session.scalars(query.order_by(RememberedPrompt.project, RememberedPrompt.control))
    return [Prompt(row.project, row.control, row.text, row.updated_at) for row in rows]


def put_prompt(
    session: Session, project: str, control: str, text: str, at: datetime.datetime | None = None
) -> bool:
    """Remember a prompt, as of a time; an empty one is forgotten. False when a later one is known already.

    A forgotten prompt leaves an empty row, so that an event that arrives late does not bring it back.
    """
    at = at or utc_now()
    row = session.get(RememberedPrompt, (project, control))
    if row is None:
        session.add(RememberedPrompt(project=project, control=control, text=text, updated_at=at))
        return True
    if row.updated_at > at:
        return False
    row.text, row.updated_at = text, at
    return True
