"""The tables. Projects and tasks are Label Studio's ids, kept as text; coordinates are percent of the upright
image, as Label Studio has them; all times are UTC.

Changing something here needs a migration in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, MetaData, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundingml.store.times import UtcDateTime, utc_now

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
# SQLite counts up by itself only a column that is exactly INTEGER.
BigId = BigInteger().with_variant(Integer(), "sqlite")

RUN_STATES = ("queued", "running", "done", "failed", "cancelled")
"""Of training runs and labelling jobs."""
VERSION_STATES = ("candidate", "serving", "retired", "rejected")
CORRECTION_KINDS = ("kept", "moved", "relabelled", "added", "deleted")


class Table(DeclarativeBase):
    """What all tables share: how Python types are stored, and constraints with names that every database
    agrees on, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own declaration)
        datetime.datetime: UtcDateTime,
        dict[str, Any]: Json,
        list[Any]: Json,
        Any: Json,
    }


class InboxEvent(Table):
    """A webhook event as it came, without its secrets; processed in the order of `id`."""

    __tablename__ = "inbox"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    project: Mapped[str | None]
    action: Mapped[str]
    payload: Mapped[dict[str, Any]]
    received_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    processed_at: Mapped[datetime.datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None]

    __table_args__ = (Index("ix_inbox_processed_at_id", "processed_at", "id"),)


class Project(Table):
    """A project that this backend has met: its label config and connection, as last seen."""

    __tablename__ = "projects"

    project: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    label_config: Mapped[str | None]
    extra_params: Mapped[Any | None]
    updated_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)


class Task(Table):
    """A task whose annotations are known. `images`: {name of the Image tag: URL as in the task's data}.

    `split` ("train" or "holdout") is set once and stays.
    """

    __tablename__ = "tasks"

    project: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(primary_key=True)
    images: Mapped[dict[str, Any]]
    original_width: Mapped[int | None]
    original_height: Mapped[int | None]
    split: Mapped[str | None]
    updated_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)


class Prediction(Table):
    """One answer for a task, also one without regions. `source`: "batch", "editor" or "job". The size is that
    of the task's image in pixels, where it was told."""

    __tablename__ = "predictions"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    project: Mapped[str]
    task: Mapped[str]
    model_version: Mapped[str]
    prompt: Mapped[Any | None]
    source: Mapped[str]
    score: Mapped[float | None]
    original_width: Mapped[int | None]
    original_height: Mapped[int | None]
    created_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)

    __table_args__ = (Index("ix_predictions_project_task", "project", "task"),)


class PredictedRegion(Table):
    """One region of a prediction, by the id that it keeps inside annotations. `label` is null for a box
    without one; `prompt` is what was asked for."""

    __tablename__ = "predicted_regions"

    region_id: Mapped[str] = mapped_column(primary_key=True)
    prediction_id: Mapped[int | None] = mapped_column(
        BigId, ForeignKey("predictions.id", ondelete="CASCADE"), index=True
    )
    project: Mapped[str]
    task: Mapped[str]
    model_version: Mapped[str]
    prompt: Mapped[Any | None]
    source: Mapped[str]
    from_name: Mapped[str]
    to_name: Mapped[str]
    label: Mapped[str | None]
    phrase: Mapped[str | None]
    x: Mapped[float]
    y: Mapped[float]
    width: Mapped[float]
    height: Mapped[float]
    score: Mapped[float]
    created_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)

    __table_args__ = (Index("ix_predicted_regions_project_task", "project", "task"),)


class Annotation(Table):
    """What an annotator submitted, as it is now. `state`: "accepted", "skipped" or "deleted".

    `result` holds the regions as Label Studio has them, nothing once it is deleted. `digest` tells whether it
    changed. `created_at` and `updated_at` are Label Studio's times, by which a late event is told from a new
    one; `seen_at` is when this side last learned of it.
    """

    __tablename__ = "annotations"

    annotation_id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    task: Mapped[str]
    state: Mapped[str]
    result: Mapped[list[Any]]
    completed_by: Mapped[str | None]
    lead_time: Mapped[float | None]
    model_version: Mapped[str | None]
    digest: Mapped[str]
    created_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    seen_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)

    __table_args__ = (
        Index("ix_annotations_project_state", "project", "state"),
        Index("ix_annotations_project_task", "project", "task"),
    )


class Correction(Table):
    """One region's way from predicted to accepted. Boxes: {"x", "y", "width", "height"} in percent."""

    __tablename__ = "corrections"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    annotation_id: Mapped[str] = mapped_column(
        ForeignKey("annotations.annotation_id", ondelete="CASCADE"), index=True
    )
    project: Mapped[str]
    task: Mapped[str]
    region_id: Mapped[str]
    from_name: Mapped[str | None]
    kind: Mapped[str]
    iou: Mapped[float | None]
    predicted_label: Mapped[str | None]
    final_label: Mapped[str | None]
    predicted_box: Mapped[Any | None]
    final_box: Mapped[Any | None]
    score: Mapped[float | None]
    prompt: Mapped[Any | None]
    model_version: Mapped[str | None]
    completed_by: Mapped[str | None]
    lead_time: Mapped[float | None]
    made_at: Mapped[datetime.datetime]

    __table_args__ = (Index("ix_corrections_project_made_at", "project", "made_at"),)


class RememberedPrompt(Table):
    """The prompt that was last submitted with an annotation, for a project's prompt control."""

    __tablename__ = "prompts"

    project: Mapped[str] = mapped_column(primary_key=True)
    control: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]
    updated_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)


class Run(Table):
    """A training run; of no project when it trains on files. Who runs it renews `heartbeat_at`."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    project: Mapped[str | None] = mapped_column(index=True)
    recipe: Mapped[str]
    options: Mapped[dict[str, Any]]
    trigger: Mapped[str]
    state: Mapped[str] = mapped_column(default="queued", index=True)
    folder: Mapped[str | None]
    device: Mapped[str | None]
    host: Mapped[str | None]
    pid: Mapped[int | None]
    attempts: Mapped[int] = mapped_column(default=0)
    heartbeat_at: Mapped[datetime.datetime | None]
    progress: Mapped[Any | None]
    message: Mapped[str | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]


class Version(Table):
    """A trained model of a project: a folder, what was measured, and whether it serves."""

    __tablename__ = "versions"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    project: Mapped[str] = mapped_column(index=True)
    digest: Mapped[str]
    folder: Mapped[str]
    parent_id: Mapped[int | None] = mapped_column(BigId, ForeignKey("versions.id"))
    run_id: Mapped[int | None] = mapped_column(BigId, ForeignKey("runs.id"))
    state: Mapped[str] = mapped_column(default="candidate")
    metrics: Mapped[Any | None]
    thresholds: Mapped[Any | None]
    reason: Mapped[str | None]
    created_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    promoted_at: Mapped[datetime.datetime | None]

    __table_args__ = (UniqueConstraint("project", "digest"),)


class Job(Table):
    """Work that was asked for over HTTP. One process at a time owns it, as long as it renews its lease."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    project: Mapped[str | None] = mapped_column(index=True)
    kind: Mapped[str]
    options: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(default="queued", index=True)
    progress: Mapped[Any | None]
    report: Mapped[Any | None]
    message: Mapped[str | None]
    owner: Mapped[str | None]
    lease_until: Mapped[datetime.datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]
