"""Which tasks are trained on and which only measured: by a hash of the task, once and for all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

Split: TypeAlias = Literal["train", "holdout"]

HOLDOUT_SHARE = 0.2
LEAST_HOLDOUT = 2
"""So many tasks are held out even where the hash would hold out fewer."""
LEAST_TRAIN = 3


class TooFewTasks(ValueError):
    """There are too few corrected tasks to train on some and measure on others. The message says how many are
    needed."""


def place(project: str, task: str) -> float:
    """A number in 0..1 that this task has for ever, on every machine."""
    digest = hashlib.sha256(f"{project}\0{task}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(
    project: str, tasks: Iterable[str], known: Mapping[str, Split], share: float = HOLDOUT_SHARE
) -> dict[str, Split]:
    """The split of each of ``tasks``. What is in ``known`` stays, so that nothing measured was ever trained
    on.

    A new task is held out when its hash falls into the first ``share``. Of very few tasks that may leave too
    few on one side: then the new ones whose hashes lie next to the border change sides, while there are any.
    """
    tasks = list(dict.fromkeys(tasks))
    found: dict[str, Split] = {task: known[task] for task in tasks if task in known}
    new = sorted((task for task in tasks if task not in known), key=lambda task: place(project, task))
    held = sum(split == "holdout" for split in found.values())
    trained = len(found) - held
    border = sum(place(project, task) < share for task in new)
    border = max(border, min(LEAST_HOLDOUT - held, len(new)))
    if len(new) - border + trained < LEAST_TRAIN:
        border = max(min(border, LEAST_HOLDOUT - held), len(new) + trained - LEAST_TRAIN, 0)
    found |= {task: "holdout" if number < border else "train" for number, task in enumerate(new)}
    return {task: found[task] for task in tasks}


def check_enough(splits: Mapping[str, Split]) -> None:
    """Raises TooFewTasks when there is nothing to train on or nothing to measure on."""
    held = sum(split == "holdout" for split in splits.values())
    trained = len(splits) - held
    if held >= LEAST_HOLDOUT and trained >= LEAST_TRAIN:
        return
    least = LEAST_HOLDOUT + LEAST_TRAIN
    if len(splits) < least:
        raise TooFewTasks(
            f"{len(splits)} corrected task{'s' * (len(splits) != 1)} with a picture: too few to train on "
            f"some and to measure on others. Correct at least {least}; from about 50 on the measurement is "
            "worth trusting."
        )
    raise TooFewTasks(
        f"of {len(splits)} corrected tasks {held} are held out and {trained} trained on; at least "
        f"{LEAST_HOLDOUT} and {LEAST_TRAIN} are needed. Correct some more tasks."
    )
