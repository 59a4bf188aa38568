"""Reading what Label Studio exports (JSON), and annotations that are at hand in its terms.

Boxes are percent of the image as Label Studio shows it, turned by `rotation` about their left upper corner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from groundingml.training.annotations import Annotations, Box, DatasetError, ImageRecord
from groundingml.training.readers.records import (
    BadRecord,
    BadRecords,
    box_inside,
    for_each,
    is_number,
    read_json,
    upright_size,
)


@dataclass(frozen=True)
class LabelledRegion:
    """A box in Label Studio's terms: percent of the image, rotation in degrees clockwise."""

    label: str
    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0


@dataclass(frozen=True)
class LabelledImage:
    """One image of a task with all its boxes; none mean that there is nothing to find.

    place: where it comes from, for messages ("task 12, annotation 34").
    """

    path: Path
    image_id: int | str
    place: str
    regions: tuple[LabelledRegion, ...]


def read_label_studio(
    data: str | Path,
    images: str | Path,
    bad_records: BadRecords = "refuse",
    decode_images: bool = False,
) -> Annotations:
    """Read a JSON export of Label Studio.

    images: the folder with the tasks' images. A task's image is looked for there by its path (of
    `/data/local-files/?d=...`) or its name, also without the random prefix that Label Studio gives uploads.
    Tasks without a finished annotation are left out, as nobody has said what they show; of several
    annotations the ground truth counts, else the one updated last. An annotation without boxes is a
    negative image. bad_records: "refuse" raises DatasetError naming them all with task and region; "skip"
    leaves them out.
    """
    source = str(data)
    tasks = read_json(Path(data))
    if not isinstance(tasks, list):
        raise DatasetError(source, ["expected a list of tasks: export the project as JSON, not JSON-MIN"])
    problems: list[str] = []
    found: list[LabelledImage] = []

    def read(task: Any) -> None:
        labelled = _read_task(task, Path(images), problems)
        if labelled is not None:
            found.append(labelled)

    for_each(tasks, read, problems, lambda number, task: f"[{number}] {_task_place(task)}".strip())
    annotations = records_of(found, decode_images=decode_images)
    problems += annotations.problems
    if problems and bad_records == "refuse":
        raise DatasetError(source, problems)
    return Annotations(annotations.records, annotations.names, problems)


def records_of(
    labelled: Sequence[LabelledImage], names: Sequence[str] | None = None, decode_images: bool = False
) -> Annotations:
    """Annotations in Label Studio's terms -> records; what cannot be used is listed in ``problems``.

    names: all that were looked for, so that those without a box count as absent; by default those that have
    one.
    """
    if names is None:
        names = list(dict.fromkeys(region.label for image in labelled for region in image.regions))
    problems: list[str] = []
    records: list[ImageRecord] = []

    def read(image: LabelledImage) -> None:
        width, height = upright_size(image.path, decode_images)
        boxes: list[tuple[Box, str]] = []
        for_each(
            image.regions,
            lambda region: boxes.append((_box(region, width, height), region.label)),
            problems,
            lambda number, region: f"{image.place}: region {number + 1} ({region.label!r})",
        )
        present = {name for _, name in boxes}
        records.append(
            ImageRecord(
                path=image.path,
                image_id=image.image_id,
                width=width,
                height=height,
                boxes_xyxy=tuple(box for box, _ in boxes),
                names=tuple(name for _, name in boxes),
                weights=(1.0,) * len(boxes),
                absent=tuple(name for name in names if name not in present),
            )
        )

    for_each(labelled, read, problems, lambda _, image: image.place)
    return Annotations(records, list(names), problems)


def regions_of(result: Sequence[Any], place: str, problems: list[str]) -> tuple[LabelledRegion, ...]:
    """The boxes of an annotation's `result`: rectangles with labels, whichever pair of controls made them.

    A region that several controls describe (Rectangle and Labels) has one entry for each under one id.
    """
    shapes: dict[Any, Mapping[str, Any]] = {}
    labels: dict[Any, str] = {}

    def read(entry: Any) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("value"), dict):
            raise BadRecord("no object with a 'value'")
        value = entry["value"]
        kind, key = entry.get("type"), entry.get("id", id(entry))
        if kind in ("rectanglelabels", "rectangle", "labels") and "width" in value:
            shapes[key] = value
        chosen = value.get("rectanglelabels") or value.get("labels")
        if isinstance(chosen, list) and chosen and isinstance(chosen[0], str):
            labels[key] = chosen[0].strip()

    for_each(result, read, problems, lambda number, _: f"{place}: result[{number}]")
    regions: list[LabelledRegion] = []

    def join(key: Any) -> None:
        value = shapes[key]
        numbers = [value.get(name) for name in ("x", "y", "width", "height")]
        if not all(is_number(number) for number in numbers):
            raise BadRecord("x, y, width and height must be numbers (percent)")
        if not labels.get(key):
            raise BadRecord("a box without a label")
        rotation = value.get("rotation") or 0.0
        if not is_number(rotation):
            raise BadRecord(f"its rotation must be a number, found {rotation!r}")
        x, y, width, height = (float(number) for number in numbers if number is not None)
        regions.append(LabelledRegion(labels[key], x, y, width, height, float(rotation)))

    for_each(list(shapes), join, problems, lambda _, key: f"{place}: region {key}")
    return tuple(regions)


def _read_task(task: Any, folder: Path, problems: list[str]) -> LabelledImage | None:
    if not isinstance(task, dict):
        raise BadRecord(f"expected a task, found {task!r:.60}")
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        raise BadRecord("has no list 'annotations'; export the project as JSON, not JSON-MIN")
    finished = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    if not finished:
        return None
    chosen = max(finished, key=lambda a: (bool(a.get("ground_truth")), str(a.get("updated_at", ""))))
    place = f"{_task_place(task)}, annotation {chosen.get('id', '?')}"
    if not isinstance(chosen.get("result"), list):
        raise BadRecord("its annotation has no list 'result'")
    regions = regions_of(chosen["result"], place, problems)
    return LabelledImage(_image_file(task, folder), task.get("id", place), place, regions)


def _image_file(task: Mapping[str, Any], folder: Path) -> Path:
    data = task.get("data")
    texts = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    named = [name for text in texts for name in _names_of(text)]
    for name in named:
        if (folder / name).is_file():
            return folder / name
    if not named:
        raise BadRecord("its 'data' names no image")
    raise BadRecord(f"no image {named[0]!r} in {folder}")


def _names_of(text: str) -> list[str]:
    """Relative paths under which the image of a URL may be kept, the most exact first."""
    parts = urlsplit(text)
    path = unquote(parse_qs(parts.query).get("d", [parts.path])[0]).lstrip("/")
    name = path.rsplit("/", 1)[-1]
    if "." not in name or ".." in path.split("/"):
        return []
    prefix, dash, rest = name.partition("-")
    uploaded = dash == "-" and len(prefix) == 8 and all(c in "0123456789abcdef" for c in prefix)
    return [path, name, rest] if uploaded else [path, name]


def _task_place(task: Any) -> str:
    return f"task {task['id']}" if isinstance(task, dict) and "id" in task else ""


def _box(region: LabelledRegion, width: int, height: int) -> Box:
    """The upright box around a region, in pixels."""
    left, top = region.x / 100 * width, region.y / 100 * height
    w, h = region.width / 100 * width, region.height / 100 * height
    angle = math.radians(region.rotation)
    across = (w * math.cos(angle), w * math.sin(angle))
    down = (-h * math.sin(angle), h * math.cos(angle))
    xs = [left + a + d for a in (0.0, across[0]) for d in (0.0, down[0])]
    ys = [top + a + d for a in (0.0, across[1]) for d in (0.0, down[1])]
    if w <= 0 or h <= 0:
        return box_inside(left, top, w, h, width, height)  # says that it has no area
    return box_inside(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys), width, height)
