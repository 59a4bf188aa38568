"""Reading YOLO annotations: a text file for each image, a line for each box: class, centre, size in 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundingml.training.annotations import Annotations, Box, DatasetError, ImageRecord
from groundingml.training.readers.records import (
    BadRecord,
    BadRecords,
    box_inside,
    for_each,
    read_text,
    upright_size,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_yolo(
    data: str | Path,
    images: str | Path | None = None,
    bad_records: BadRecords = "refuse",
    decode_images: bool = False,
    split: str = "train",
) -> Annotations:
    """Read YOLO annotations.

    data: a `data.yaml` (Ultralytics: `path`, `train`, `val`, `names`), of which ``split`` is read; or a
    folder of label files with a `classes.txt` (one name on a line), whose pictures are in ``images``.
    Labels are where YOLO looks for them: `labels/` in place of `images/` in a picture's path, else beside
    the picture. A picture without a label file has no boxes. Lines with more than 4 numbers are polygons,
    of which the box around is taken; a fifth number is a score, which is taken as the weight.
    bad_records: "refuse" raises DatasetError naming them all with file and line; "skip" leaves them out.
    """
    data = Path(data)
    if data.is_dir():
        names = _names_of_lines(data / "classes.txt")
        pictures = _pictures(Path(images) if images is not None else data, data)
    else:
        names, folders = _read_yaml(data, split)
        if images is not None:
            folders = [Path(images)]
        pictures = [picture for folder in folders for picture in _pictures(folder, None)]
    if not pictures:
        raise DatasetError(str(data), ["no pictures to it were found; name their folder with --images"])
    problems: list[str] = []
    records: list[ImageRecord] = []

    def read(entry: Any) -> None:
        picture, labels = entry
        width, height = upright_size(picture, decode_images)
        records.append(_read_labels(picture, labels, names, width, height, problems))

    for_each(pictures, read, problems, lambda _, entry: str(entry[0]))
    if problems and bad_records == "refuse":
        raise DatasetError(str(data), problems)
    return Annotations(records, list(dict.fromkeys(names)), problems)


def _read_labels(
    picture: Path, labels: Path, names: Sequence[str], width: int, height: int, problems: list[str]
) -> ImageRecord:
    boxes: list[tuple[Box, str, float]] = []
    lines = read_text(labels).splitlines() if labels.is_file() else []

    def read(line: str) -> None:
        if line.strip():
            boxes.append(_read_line(line, names, width, height))

    for_each(lines, read, problems, lambda number, _: f"{labels}:{number + 1}")
    present = {name for _, name, _ in boxes}
    return ImageRecord(
        path=picture,
        image_id=picture.stem,
        width=width,
        height=height,
        boxes_xyxy=tuple(box for box, _, _ in boxes),
        names=tuple(name for _, name, _ in boxes),
        weights=tuple(weight for _, _, weight in boxes),
        absent=tuple(name for name in dict.fromkeys(names) if name not in present),
    )


def _read_line(line: str, names: Sequence[str], width: int, height: int) -> tuple[Box, str, float]:
    parts = line.split()
    try:
        number, values = int(parts[0]), [float(part) for part in parts[1:]]
    except ValueError as error:
        raise BadRecord(f"expected a class number and numbers, found {line.strip()!r:.60}") from error
    if not 0 <= number < len(names):
        raise BadRecord(f"class {number} has no name: there are {len(names)}, counted from 0")
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[0::2], values[1::2]
        values = [(min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]
    if len(values) not in (4, 5):
        raise BadRecord(f"expected 4 numbers after the class, found {len(values)}")
    if not all(-0.5 <= value <= 1.5 for value in values[:4]):  # NaN is refused too
        raise BadRecord("coordinates must be relative to the image, 0..1; these look like pixels")
    weight = values[4] if len(values) == 5 else 1.0
    if not weight >= 0:
        raise BadRecord(f"its score must be a number >= 0, found {weight!r}")
    x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
    return box_inside(x - w / 2, y - h / 2, w, h, width, height), names[number], weight


def _pictures(folder: Path, labels: Path | None) -> list[tuple[Path, Path]]:
    """Each picture below a folder (or named in a text file) with the file that should hold its labels."""
    if folder.is_file():
        lines = [line.strip() for line in read_text(folder).splitlines()]
        files = [folder.parent / line for line in lines if line]
    else:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if labels is not None:
        return [(file, labels / file.relative_to(folder).with_suffix(".txt")) for file in files]
    return [(file, _label_file(file)) for file in files]


def _label_file(picture: Path) -> Path:
    parts = list(picture.parts)
    places = [number for number, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
        return Path(*parts).with_suffix(".txt")
    return picture.with_suffix(".txt")


def _names_of_lines(file: Path) -> list[str]:
    if not file.is_file():
        raise DatasetError(
            str(file.parent), ["no classes.txt with the names of the classes, one on a line, in their order"]
        )
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def _read_yaml(file: Path, split: str) -> tuple[list[str], list[Path]]:
    import yaml

    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise DatasetError(str(file), [f"not valid YAML: {error}"]) from error
    if not isinstance(content, dict) or "names" not in content or split not in content:
        raise DatasetError(str(file), [f"no 'names' or no {split!r}: this is not a YOLO data file"])
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DatasetError(str(file), ["'names' must number the classes 0, 1, 2 and so on"])
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise DatasetError(str(file), ["'names' must be a list of names, or number them"])
    root = file.parent / str(content.get("path", ""))
    places = content[split] if isinstance(content[split], list) else [content[split]]
    folders = [root / str(place) for place in places]
    missing = [f"{split}: no such folder or file: {place}" for place in folders if not place.exists()]
    if missing:
        raise DatasetError(str(file), missing)
    return [name.strip() for name in names], folders
