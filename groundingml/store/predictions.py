"""What was predicted, by region id: later it tells what people changed."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from groundingml.store.tables import PredictedRegion, Prediction
from groundingml.store.times import utc_now

Source = Literal["batch", "editor", "job"]


@dataclass(frozen=True)
class NewRegion:
    """One predicted box. Coordinates are percent of the upright image; ``prompt`` is what was looked for."""

    region_id: str
    from_name: str
    to_name: str
    label: str | None
    phrase: str | None
    prompt: Any
    x: float
    y: float
    width: float
    height: float
    score: float


@dataclass(frozen=True)
class NewPrediction:
    """One answer for one task. ``prompt`` is what was asked, as JSON."""

    project: str
    task: str
    model_version: str
    source: Source
    prompt: Any
    score: float | None
    regions: Sequence[NewRegion] = ()
    size: tuple[int, int] | None = None
    """Width and height of the image in pixels."""
    created_at: datetime.datetime = field(default_factory=utc_now)


def record_predictions(session: Session, predictions: Iterable[NewPrediction]) -> int:
    """Keep predictions, and say how many were new: one with a region id that is known already is not."""
    new = 0
    for one in predictions:
        ids = [region.region_id for region in one.regions]
        if (
            ids
            and session.scalars(
                select(PredictedRegion.region_id).where(PredictedRegion.region_id.in_(ids)).limit(1)
            ).first()
        ):
            continue
        row = Prediction(
            project=one.project,
            task=one.task,
            model_version=one.model_version,
            prompt=one.prompt,
            source=one.source,
            score=one.score,
            original_width=one.size[0] if one.size else None,
            original_height=one.size[1] if one.size else None,
            created_at=one.created_at,
        )
        session.add(row)
        session.flush()
        session.add_all(_region(one, region, row.id) for region in one.regions)
        session.flush()
        new += 1
    return new


def predictions_of(session: Session, project: str, task: str) -> list[Prediction]:
    """All predictions of a task, oldest first."""
    return list(
        session.scalars(
            select(Prediction)
            .where(Prediction.project == project, Prediction.task == task)
            .order_by(Prediction.created_at, Prediction.id)
        )
    )


def regions_of(session: Session, project: str, task: str) -> dict[int | None, list[PredictedRegion]]:
    """The predicted regions of a task, by the id of their prediction."""
    found: dict[int | None, list[PredictedRegion]] = {}
    for region in session.scalars(
        select(PredictedRegion)
        .where(PredictedRegion.project == project, PredictedRegion.task == task)
        .order_by(PredictedRegion.score.desc(), PredictedRegion.region_id)
    ):
        found.setdefault(region.prediction_id, []).append(region)
    return found


def _region(of: NewPrediction, region: NewRegion, prediction_id: int) -> PredictedRegion:
    return PredictedRegion(
        region_id=region.region_id,
        prediction_id=prediction_id,
        project=of.project,
        task=of.task,
        model_version=of.model_version,
        prompt=region.prompt,
        source=of.source,
        from_name=region.from_name,
        to_name=region.to_name,
        label=region.label,
        phrase=region.phrase,
        x=region.x,
        y=region.y,
        width=region.width,
        height=region.height,
        score=region.score,
        created_at=of.created_at,
    )
