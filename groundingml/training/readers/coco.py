"""Reading COCO annotations: JSON beside a folder of images, every bad record named by its place."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read_coco(
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    bad_records: BadRecords = "refuse",
    decode_images: bool = False,
) -> Annotations:
    """Read COCO detection annotations (``images``, ``annotations``, ``categories``).

    annotations: the JSON file, or what it holds. images: the folder that ``file_name`` is relative to. Images
    without boxes are kept (they are negatives), crowd boxes are kept apart, boxes that stick out of the image
    are clipped. Beyond COCO, an annotation may carry ``weight`` (else ``score``) >= 0, and an image
    ``neg_category_ids``.
    bad_records: "refuse" raises DatasetError naming them all; "skip" leaves them out and lists them in
    ``problems``. A file that is no COCO annotation at all raises DatasetError either way.
    decode_images: read every picture to its end, so that one cut short is found now and not in training.
    """
    source = "annotations" if isinstance(annotations, Mapping) else str(annotations)
    content = annotations if isinstance(annotations, Mapping) else read_json(Path(annotations))
    if not isinstance(content, Mapping):
        raise DatasetError(source, [f"expected a JSON object, found a {type(content).__name__}"])
    lists = ("images", "annotations", "categories")
    missing = [key for key in lists if not isinstance(content.get(key), list)]
    if missing:
        raise DatasetError(source, [f"no list {key!r}: this is not a COCO detection file" for key in missing])
    problems: list[str] = []
    categories = _by_id("categories", content["categories"], _category, problems)
    folder = Path(images)
    files = _by_id(
        "images", content["images"], lambda entry: _image(entry, folder, categories, decode_images), problems
    )
    listed = {_key(entry) for entry in content["images"]}
    boxes: dict[Any, list[_Box]] = {}

    def collect(entry: Any) -> None:
        key = _reference(entry, "image_id", listed, "images")
        name = categories[_reference(entry, "category_id", categories, "categories")]
        if key in files:  # else the image itself is already listed as bad
            boxes.setdefault(key, []).append(_box(entry, name, files[key]))

    for_each(content["annotations"], collect, problems, _place("annotations"))
    records = []
    for key, found in files.items():
        own = [box for box in boxes.get(key, []) if not box.crowd]
        present = {box.name for box in boxes.get(key, [])}
        records.append(
            ImageRecord(
                path=found.path,
                image_id=key,
                width=found.width,
                height=found.height,
                boxes_xyxy=tuple(box.xyxy for box in own),
                names=tuple(box.name for box in own),
                weights=tuple(box.weight for box in own),
                absent=tuple(name for name in found.candidates if name not in present),
                crowds=tuple((box.xyxy, box.name) for box in boxes.get(key, []) if box.crowd),
            )
        )
    if problems and bad_records == "refuse":
        raise DatasetError(source, problems)
    return Annotations(records, list(dict.fromkeys(categories.values())), problems)


@dataclass(frozen=True)
class _ImageFile:
    path: Path
    width: int
    height: int
    candidates: tuple[str, ...]  # names that may be asked for although the image has no box of them


@dataclass(frozen=True)
class _Box:
    xyxy: Box
    name: str
    weight: float
    crowd: bool


def _by_id(
    kind: str, entries: list[Any], read: Callable[[Mapping[str, Any]], Any], problems: list[str]
) -> dict[Any, Any]:
    found: dict[Any, Any] = {}

    def keep(entry: Any) -> None:
        if not isinstance(entry, dict):
            raise BadRecord(f"expected an object, found {entry!r:.60}")
        if _key(entry) is None:
            raise BadRecord("has no 'id'")
        if entry["id"] in found:
            raise BadRecord("an earlier one has the same id")
        found[entry["id"]] = read(entry)

    for_each(entries, keep, problems, _place(kind))
    return found


def _key(entry: Any) -> Any:
    identity = entry.get("id") if isinstance(entry, dict) else None
    return identity if isinstance(identity, int | str) else None


def _place(kind: str) -> Callable[[int, Any], str]:
    def place(number: int, entry: Any) -> str:
        key = _key(entry)
        return f"{kind}[{number}]" + ("" if key is None else f" (id {key!r})")

    return place


def _category(entry: Mapping[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadRecord("has no 'name'")
    return name.strip()


def _image(entry: Mapping[str, Any], folder: Path, categories: Mapping[Any, str], decode: bool) -> _ImageFile:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise BadRecord("has no 'file_name'")
    path = folder / name
    width, height = upright_size(path, decode)
    said = (entry.get("width", width), entry.get("height", height))
    if said != (width, height):
        raise BadRecord(f"annotated as {said[0]}x{said[1]}, but {path} is {width}x{height} when upright")
    return _ImageFile(path, width, height, _candidates(entry, categories))


def _reference(entry: Any, key: str, known: Container[Any], kind: str) -> Any:
    if not isinstance(entry, dict):
        raise BadRecord(f"expected an object, found {entry!r:.60}")
    if not isinstance(entry.get(key), int | str):
        raise BadRecord(f"has no {key!r}")
    if entry[key] not in known:
        raise BadRecord(f"{key} {entry[key]!r} is not among the {kind}")
    return entry[key]


def _box(entry: Mapping[str, Any], name: str, image: _ImageFile) -> _Box:
    weight = entry.get("weight", entry.get("score", 1.0))
    if not is_number(weight) or weight < 0:
        raise BadRecord(f"its weight must be a number >= 0, found {weight!r}")
    corners = _clipped_box(entry.get("bbox"), image.width, image.height)
    return _Box(corners, name, float(weight), crowd=bool(entry.get("iscrowd")))


def _clipped_box(box: Any, width: int, height: int) -> Box:
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(is_number(value) for value in box):
        raise BadRecord(f"'bbox' must be four numbers [x, y, width, height], found {box!r:.80}")
    x, y, w, h = (float(value) for value in box)
    return box_inside(x, y, w, h, width, height)


def _candidates(entry: Mapping[str, Any], categories: Mapping[Any, str]) -> tuple[str, ...]:
    known = entry.get("neg_category_ids")
    if known is None:
        return tuple(dict.fromkeys(categories.values()))
    if isinstance(known, list) and all(isinstance(key, int | str) and key in categories for key in known):
        return tuple(dict.fromkeys(categories[key] for key in known))
    raise BadRecord("'neg_category_ids' must be a list of ids of 'categories'")
