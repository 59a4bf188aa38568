"""How much of what is predicted people accept: by label, and over time."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from groundingml.learning.corrections import KEPT_IOU
from groundingml.store.tables import Correction


@dataclass
class Counts:
    """How many regions were kept, moved, relabelled, deleted and added.

    What was moved and relabelled counts as relabelled.
    """

    kept: int = 0
    moved: int = 0
    relabelled: int = 0
    deleted: int = 0
    added: int = 0
    ious: list[float] = field(default_factory=list, repr=False)

    def add(self, kind: str, iou: float | None) -> None:
        """Count one more."""
        setattr(self, kind, getattr(self, kind) + 1)
        if iou is not None:
            self.ious.append(iou)

    @property
    def predicted(self) -> int:
        """How many were predicted."""
        return self.kept + self.moved + self.relabelled + self.deleted

    @property
    def rate(self) -> float | None:
        """The share of the predicted ones that were kept as they were; None when there are none."""
        return self.kept / self.predicted if self.predicted else None

    @property
    def mean_iou(self) -> float | None:
        """Of predicted and accepted box, over all that were not deleted."""
        return sum(self.ious) / len(self.ious) if self.ious else None

    def as_json(self) -> dict[str, float | int | None]:
        """Everything, by name."""
        counts = {name: getattr(self, name) for name in ("kept", "moved", "relabelled", "deleted", "added")}
        return {
            "predicted": self.predicted,
            **counts,
            "acceptance_rate": self.rate,
            "mean_iou": self.mean_iou,
        }


@dataclass
class Acceptance(Counts):
    """The counts of one day, in UTC, for what one model version predicted in one project."""

    day: datetime.date = datetime.date.min
    model_version: str | None = None
    project: str = ""


def corrections(session: Session, project: str | None = None) -> list[Correction]:
    """All corrections, or those of a project, in the order they were made."""
    query = select(Correction).order_by(Correction.made_at, Correction.annotation_id, Correction.id)
    return list(session.scalars(query if project is None else query.where(Correction.project == project)))


def was_moved(row: Correction) -> bool:
    """Whether the box was changed, whatever became of its label."""
    return row.iou is not None and row.iou < KEPT_IOU


def acceptance_by_label(rows: Iterable[Correction]) -> dict[str | None, Counts]:
    """By the label that was predicted, or given where nothing was; the label with most regions first. A
    relabelled region counts for the label that it had."""
    found: dict[str | None, Counts] = {}
    for row in rows:
        label = row.final_label if row.kind == "added" else row.predicted_label
        found.setdefault(label, Counts()).add(row.kind, row.iou)
    return dict(sorted(found.items(), key=lambda item: -(item[1].predicted + item[1].added)))


def acceptance_over_time(
    session: Session, project: str | None = None, since: datetime.datetime | None = None
) -> list[Acceptance]:
    """By day (UTC), project and model version, the oldest first."""
    query = select(
        Correction.made_at, Correction.project, Correction.model_version, Correction.kind, Correction.iou
    )
    if project is not None:
        query = query.where(Correction.project == project)
    if since is not None:
        query = query.where(Correction.made_at >= since)
    found: dict[tuple[datetime.date, str, str | None], Acceptance] = {}
    for made_at, of, version, kind, iou in session.execute(query):
        key = (made_at.date(), of, version)
        one = found.setdefault(key, Acceptance(day=key[0], project=of, model_version=version))
        one.add(kind, iou)
    return sorted(found.values(), key=lambda one: (one.day, one.project, one.model_version or ""))
