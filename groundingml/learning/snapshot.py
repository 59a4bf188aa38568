"""What a run learns from: the accepted annotations at its beginning, in a file of its own, so that a resumed
run goes on with the same."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from groundingml.inference import Label
from groundingml.learning.accepted import accepted_tasks
from groundingml.learning.examples import TaskExample, task_examples
from groundingml.learning.splits import HOLDOUT_SHARE, Split, assign_splits
from groundingml.store import Store
from groundingml.store.tables import Correction, Task


@dataclass(frozen=True)
class Snapshot:
    """labels: what the project asks for, with its prompts. splits: task -> where it belongs. corrections: how
    many regions people had to change so far. problems: what could not be used, in words."""

    labels: list[Label]
    examples: list[TaskExample]
    splits: dict[str, Split]
    corrections: int
    problems: list[str]


def take_snapshot(store: Store, project: str, labels: list[Label], share: float = HOLDOUT_SHARE) -> Snapshot:
    """The project's accepted annotations, the newest one of each task, and a split for each task, kept in the
    store.

    Labels that annotators used but the project does not ask for (any more) are learned too, after the others.
    """
    problems: list[str] = []
    examples: list[TaskExample] = []
    known: dict[str, str | None] = {}
    with store.begin() as session:
        for task in accepted_tasks(session, project):
            found = task_examples(task, problems)
            examples += found
            if found:
                known[task.task] = task.split
        given: dict[str, Split] = {key: split for key, split in known.items() if split is not None}  # type: ignore[misc]
        splits = assign_splits(project, known, given, share)
        for key, split in splits.items():
            row = session.get(Task, (project, key))
            assert row is not None, "an accepted task with images has a row"
            row.split = split
        changed = select(func.count()).where(Correction.project == project, Correction.kind != "kept")
        corrections = session.scalar(changed) or 0
    asked = {label.name for label in labels}
    used = dict.fromkeys(box[0] for example in examples for box in example.boxes)
    extra = [Label(name) for name in used if name not in asked and any(letter.isalnum() for letter in name)]
    return Snapshot([*labels, *extra], examples, splits, corrections, problems)


def write_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Keep it, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(asdict(snapshot), file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_snapshot(path: Path) -> Snapshot:
    """What `write_snapshot` wrote."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return Snapshot(
        labels=[
            Label(one["name"], tuple(one["prompts"]), one["threshold"], tuple(one["negative_prompts"]))
            for one in content["labels"]
        ],
        examples=[
            TaskExample(
                one["task"], one["image"], one["reference"], tuple(tuple(box) for box in one["boxes"])
            )
            for one in content["examples"]
        ],
        splits=content["splits"],
        corrections=content["corrections"],
        problems=content["problems"],
    )
