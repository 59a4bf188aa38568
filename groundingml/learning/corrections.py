"""What people changed: the difference between what was predicted for a task and what was accepted.

Regions keep their ids on the way through Label Studio, so most are told by id. Where none of a prediction's
ids came back (imported annotations, other clients) its regions are matched by overlap.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from groundingml.learning.regions import AcceptedRegion, PercentBox, accepted_regions
from groundingml.store import predictions, utc_now
from groundingml.store.tables import Annotation, Correction, PredictedRegion, Prediction, Task

Kind = Literal["kept", "moved", "relabelled", "added", "deleted"]

KEPT_IOU = 0.99
"""A box that overlaps its prediction by this much was not moved: people nudge without meaning it."""
SAME_THING_IOU = 0.5
"""Boxes without a common id are about the same thing from this overlap on."""
CLOCKS_DIFFER = datetime.timedelta(seconds=10)
"""By so much the clocks of Label Studio and of this machine may differ."""


@dataclass(frozen=True)
class Change:
    """One region's way from predicted to accepted; one of the two is None when it was added or deleted.

    A relabelled region was moved too when its ``iou`` is below KEPT_IOU.
    """

    kind: Kind
    iou: float | None
    predicted: PredictedRegion | None
    final: AcceptedRegion | None

    @property
    def region_id(self) -> str:
        """The id that the region has in the annotation; that of the prediction when it was deleted."""
        if self.final is not None:
            return self.final.region_id
        assert self.predicted is not None
        return self.predicted.region_id


def changes(
    predicted: Sequence[Sequence[PredictedRegion]], accepted: Iterable[AcceptedRegion]
) -> list[Change]:
    """What became of each predicted region, then what was added.

    predicted: the regions of each prediction that the annotator had before them.
    """
    left = {region.region_id: region for region in accepted}
    found: list[Change] = []
    unmatched: list[PredictedRegion] = []
    for regions in predicted:
        by_id = {region.region_id: left.pop(region.region_id, None) for region in regions}
        if any(final is not None for final in by_id.values()):
            found += [_change(region, by_id[region.region_id]) for region in regions]
        else:
            unmatched += regions
    pairs = _by_overlap(unmatched, list(left.values()))
    for region in unmatched:
        final = pairs.get(region.region_id)
        if final is not None:
            del left[final.region_id]
        found.append(_change(region, final))
    return found + [Change("added", None, None, region) for region in left.values()]


def correct(session: Session, annotation: Annotation, now: datetime.datetime | None = None) -> int:
    """Put an annotation's corrections in the place of those it had before; how many it has now.

    Skipped and deleted annotations have none.
    """
    session.execute(delete(Correction).where(Correction.annotation_id == annotation.annotation_id))
    annotation.model_version = None
    if annotation.state != "accepted":
        return 0
    accepted = accepted_regions(annotation.result)
    every = predictions.predictions_of(session, annotation.project, annotation.task)
    known = predictions.regions_of(session, annotation.project, annotation.task)
    _learn_size(session, annotation, accepted, every)
    base, others = _had_before_them(annotation, accepted, every, known)
    predicted = [known.get(one.id, []) for one in (*others, *((base,) if base else ()))]
    asked = base or (others[-1] if others else None)
    annotation.model_version = asked.model_version if asked else None
    made_at = annotation.updated_at
    rows = [_row(annotation, change, asked, made_at) for change in changes(predicted, accepted)]
    session.add_all(rows)
    session.flush()
    return len(rows)


def correct_task(session: Session, project: str, task: str) -> int:
    """The same for all accepted annotations of a task, when more is known of its predictions."""
    rows = session.scalars(
        select(Annotation).where(
            Annotation.project == project, Annotation.task == task, Annotation.state == "accepted"
        )
    ).all()
    return sum(correct(session, row, utc_now()) for row in rows)


def _had_before_them(
    annotation: Annotation,
    accepted: Sequence[AcceptedRegion],
    every: Sequence[Prediction],
    known: Mapping[int | None, Sequence[PredictedRegion]],
) -> tuple[Prediction | None, list[Prediction]]:
    """The prediction that the annotator began with, and those answers in the editor that they used.

    Of several predictions the one whose regions came back is taken, the newest of them; else the newest that
    was there when the annotation was made. An answer in the editor of which nothing was accepted says
    nothing: people try prompts.
    """
    ids = {region.region_id for region in accepted}
    used = {number for number, regions in known.items() if any(region.region_id in ids for region in regions)}
    editor = [one for one in every if one.source == "editor" and one.id in used]
    begun_with = [one for one in every if one.source != "editor"]
    returned = [one for one in begun_with if one.id in used]
    until = annotation.created_at + CLOCKS_DIFFER
    there = returned or [one for one in begun_with if one.created_at <= until]
    return (there[-1] if there else None), editor


def _change(predicted: PredictedRegion, final: AcceptedRegion | None) -> Change:
    if final is None:
        return Change("deleted", None, predicted, None)
    iou = _box(predicted).iou(final.box)
    if final.rotation % 360:
        iou = min(iou, 0.98)  # turning a box is moving it, however much the upright boxes overlap
    same = predicted.label in final.labels if predicted.label is not None else not final.labels
    kind: Kind = "relabelled" if not same else "kept" if iou >= KEPT_IOU else "moved"
    return Change(kind, iou, predicted, final)


def _by_overlap(
    predicted: Sequence[PredictedRegion], accepted: Sequence[AcceptedRegion]
) -> dict[str, AcceptedRegion]:
    """Pairs that overlap, chosen so that they overlap most in all; an equal label decides between equals."""
    if not predicted or not accepted:
        return {}
    iou = np.array([[_overlap(one, other) for other in accepted] for one in predicted])
    same = np.array([[one.label in other.labels for other in accepted] for one in predicted])
    gain = np.where(iou >= SAME_THING_IOU, iou + 0.25 * same, 0.0)
    rows, columns = linear_sum_assignment(-gain)
    return {
        predicted[row].region_id: accepted[column]
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if gain[row, column] > 0
    }


def _overlap(predicted: PredictedRegion, accepted: AcceptedRegion) -> float:
    return _box(predicted).iou(accepted.box) if predicted.to_name == accepted.image else 0.0


def _box(region: PredictedRegion) -> PercentBox:
    return PercentBox(region.x, region.y, region.width, region.height)


def _learn_size(
    session: Session,
    annotation: Annotation,
    accepted: Sequence[AcceptedRegion],
    every: Sequence[Prediction],
) -> None:
    """The size of the task's image, as its regions tell, accepted or predicted."""
    task = session.get(Task, (annotation.project, annotation.task))
    told = [(one.original_width, one.original_height) for one in every]
    told += [(region.image_width, region.image_height) for region in reversed(accepted)]
    for width, height in told:
        if task is not None and width and height:
            task.original_width, task.original_height = width, height


def _row(
    annotation: Annotation, change: Change, asked: Prediction | None, made_at: datetime.datetime
) -> Correction:
    predicted, final = change.predicted, change.final
    label: str | None = None
    if final is not None:
        kept = predicted is not None and predicted.label in final.labels
        label = predicted.label if kept and predicted is not None else final.label
    prompt = _asked_for(label, asked.prompt if asked is not None else None)
    return Correction(
        annotation_id=annotation.annotation_id,
        project=annotation.project,
        task=annotation.task,
        region_id=change.region_id,
        from_name=final.from_name if final is not None else predicted.from_name if predicted else None,
        kind=change.kind,
        iou=change.iou,
        predicted_label=predicted.label if predicted is not None else None,
        final_label=label,
        predicted_box=_box(predicted).as_json() if predicted is not None else None,
        final_box=final.box.as_json() if final is not None else None,
        score=predicted.score if predicted is not None else None,
        prompt=predicted.prompt if predicted is not None else prompt,
        model_version=predicted.model_version if predicted is not None else annotation.model_version,
        completed_by=annotation.completed_by,
        lead_time=annotation.lead_time,
        made_at=made_at,
    )


def _asked_for(label: str | None, prompt: Any) -> Any:
    """What had been asked for a label, or else typed, when it was missed."""
    if not isinstance(prompt, Mapping) or not isinstance(prompt.get("asked"), Mapping):
        return prompt
    typed = {name: value for name, value in prompt.items() if name != "asked" and value}
    return prompt["asked"].get(label, typed or None)
