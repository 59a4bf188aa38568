"""Reading COCO annotations: JSON beside a folder of images, every bad record named by its place."""

import json
import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from groundingml.inference.images import ImageError, load_image

Box: TypeAlias = tuple[float, float, float, float]

_ORIENTATION = 0x0112
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
class CocoAnnotations:
    """The usable records of a file, its category names in file order, and what was wrong with the rest."""

    records: list[ImageRecord]
    names: list[str]
    problems: list[str]


def read_coco(
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    bad_records: Literal["refuse", "skip"] = "refuse",
    decode_images: bool = False,
) -> CocoAnnotations:
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
    content = annotations if isinstance(annotations, Mapping) else _read_json(Path(annotations))
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

    _for_each("annotations", content["annotations"], collect, problems)
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
    return CocoAnnotations(records, list(dict.fromkeys(categories.values())), problems)


class _BadRecord(Exception):
    """Why one record cannot be used."""


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


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(str(path), [f"cannot be read: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        raise DatasetError(str(path), [f"not UTF-8 text (byte {error.start})"]) from error
    except json.JSONDecodeError as error:
        raise DatasetError(
            str(path), [f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"]
        ) from error
    if not isinstance(content, dict):
        raise DatasetError(str(path), [f"expected a JSON object, found a {type(content).__name__}"])
    return content


def _for_each(kind: str, entries: list[Any], use: Callable[[Any], None], problems: list[str]) -> None:
    """Call ``use`` on each entry; what it refuses is noted with its place."""

    def refusal(entry: Any) -> _BadRecord | None:
        try:
            use(entry)
        except _BadRecord as bad:
            return bad
        return None

    for place, entry in enumerate(entries):
        bad = refusal(entry)
        if bad is not None:
            problems.append(f"{kind}[{place}]{_identity(entry)}: {bad}")


def _by_id(
    kind: str, entries: list[Any], read: Callable[[Mapping[str, Any]], Any], problems: list[str]
) -> dict[Any, Any]:
    found: dict[Any, Any] = {}

    def keep(entry: Any) -> None:
        if not isinstance(entry, dict):
            raise _BadRecord(f"expected an object, found {entry!r:.60}")
        if _key(entry) is None:
            raise _BadRecord("has no 'id'")
        if entry["id"] in found:
            raise _BadRecord("an earlier one has the same id")
        found[entry["id"]] = read(entry)

    _for_each(kind, entries, keep, problems)
    return found


def _key(entry: Any) -> Any:
    identity = entry.get("id") if isinstance(entry, dict) else None
    return identity if isinstance(identity, int | str) else None


def _identity(entry: Any) -> str:
    key = _key(entry)
    return "" if key is None else f" (id {key!r})"


def _category(entry: Mapping[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise _BadRecord("has no 'name'")
    return name.strip()


def _image(entry: Mapping[str, Any], folder: Path, categories: Mapping[Any, str], decode: bool) -> _ImageFile:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise _BadRecord("has no 'file_name'")
    path = folder / name
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION, 1) >= 5:  # stored lying on its side
                width, height = height, width
    except FileNotFoundError as error:
        raise _BadRecord(f"no such file: {path}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise _BadRecord(f"{path}: {_why_unreadable(path) or error}") from error
    unreadable = _why_unreadable(path) if decode else None
    if unreadable is not None:
        raise _BadRecord(f"{path}: {unreadable}")
    said = (entry.get("width", width), entry.get("height", height))
    if said != (width, height):
        raise _BadRecord(f"annotated as {said[0]}x{said[1]}, but {path} is {width}x{height} when upright")
    return _ImageFile(path, width, height, _candidates(entry, categories))


def _why_unreadable(path: Path) -> str | None:
    try:
        load_image(path)
    except ImageError as error:
        return error.reason
    return None


def _reference(entry: Any, key: str, known: Container[Any], kind: str) -> Any:
    if not isinstance(entry, dict):
        raise _BadRecord(f"expected an object, found {entry!r:.60}")
    if not isinstance(entry.get(key), int | str):
        raise _BadRecord(f"has no {key!r}")
    if entry[key] not in known:
        raise _BadRecord(f"{key} {entry[key]!r} is not among the {kind}")
    return entry[key]


def _box(entry: Mapping[str, Any], name: str, image: _ImageFile) -> _Box:
    weight = entry.get("weight", entry.get("score", 1.0))
    if not _is_number(weight) or weight < 0:
        raise _BadRecord(f"its weight must be a number >= 0, found {weight!r}")
    corners = _clipped_box(entry.get("bbox"), image.width, image.height)
    return _Box(corners, name, float(weight), crowd=bool(entry.get("iscrowd")))


def _clipped_box(box: Any, width: int, height: int) -> Box:
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise _BadRecord(f"'bbox' must be four numbers [x, y, width, height], found {box!r:.80}")
    x, y, w, h = (float(value) for value in box)
    if w <= 0 or h <= 0:
        raise _BadRecord(f"'bbox' has no area: [{x:g}, {y:g}, {w:g}, {h:g}]")
    clipped = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise _BadRecord(f"'bbox' [{x:g}, {y:g}, {w:g}, {h:g}] lies outside its {width}x{height} image")
    return clipped


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _candidates(entry: Mapping[str, Any], categories: Mapping[Any, str]) -> tuple[str, ...]:
    known = entry.get("neg_category_ids")
    if known is None:
        return tuple(dict.fromkeys(categories.values()))
    if isinstance(known, list) and all(isinstance(key, int | str) and key in categories for key in known):
        return tuple(dict.fromkeys(categories[key] for key in known))
    raise _BadRecord("'neg_category_ids' must be a list of ids of 'categories'")
