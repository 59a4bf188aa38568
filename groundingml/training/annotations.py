"""Annotated images, whatever file they were read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Box: TypeAlias = tuple[float, float, float, float]

_SHOWN = 20


class DatasetError(ValueError):
    """Annotations that cannot be used. ``problems`` holds one line for each, with its place in the file."""

    def __init__(self, source: str, problems: list[str]) -> None:
        if len(problems) == 1:
            message = f"{source}: {problems[0]}"
        else:
            more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            message = f"{source}: {len(problems)} bad records\n  " + "\n  ".join(problems[:_SHOWN]) + more
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class ImageRecord:
    """One image and what is known about it.

    boxes_xyxy: N boxes in pixels of the upright image, inside it; names: N; weights: N, each 1 by default.
    absent: names known not to be in the image, from which negatives are sampled (all others of the data set,
    unless the record lists them itself as ``neg_category_ids``, as LVIS does). crowds: boxes around many
    objects of a name; they are not trained on, and what is found in them counts neither way.
    """

    path: Path
    image_id: int | str
    width: int
    height: int
    boxes_xyxy: tuple[Box, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    absent: tuple[str, ...]
    crowds: tuple[tuple[Box, str], ...] = ()


@dataclass(frozen=True)
class Annotations:
    """The usable records of a file, its names in file order, and what was wrong with the rest."""

    records: list[ImageRecord]
    names: list[str]
    problems: list[str]
