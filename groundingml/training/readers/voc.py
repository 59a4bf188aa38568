"""Reading PASCAL VOC annotations: an XML file for each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from groundingml.training.annotations import Annotations, Box, DatasetError, ImageRecord
from groundingml.training.readers.records import (
    BadRecord,
    BadRecords,
    box_inside,
    for_each,
    upright_size,
)


def read_voc(
    data: str | Path,
    images: str | Path | None = None,
    bad_records: BadRecords = "refuse",
    decode_images: bool = False,
) -> Annotations:
    """Read VOC annotations.

    data: a folder of XML files, or one file. images: where the pictures are (`<filename>` there, else the
    picture with the XML file's name); by default `JPEGImages` beside the folder, as in VOC, or the folder
    itself. Objects marked difficult or truncated count as others do; of `<pose>` and parts nothing is read.
    bad_records: "refuse" raises DatasetError naming them all with file and object; "skip" leaves them out.
    """
    data = Path(data)
    files = sorted(data.glob("*.xml")) if data.is_dir() else [data]
    if not files:
        raise DatasetError(str(data), ["no XML file in this folder"])
    folder = Path(images) if images is not None else _beside(data if data.is_dir() else data.parent)
    problems: list[str] = []
    found: list[tuple[Path, int, int, list[tuple[Box, str]]]] = []

    def read(file: Path) -> None:
        root = _parse(file)
        picture = _picture(root, file, folder)
        width, height = upright_size(picture, decode_images)
        _check_size(root, width, height, picture)
        boxes: list[tuple[Box, str]] = []
        for_each(
            root.findall("object"),
            lambda entry: boxes.append(_object(entry, width, height)),
            problems,
            lambda number, _: f"{file}: object {number + 1}",
        )
        found.append((picture, width, height, boxes))

    for_each(files, read, problems, lambda _, file: str(file))
    if problems and bad_records == "refuse":
        raise DatasetError(str(data), problems)
    names = sorted({name for _, _, _, boxes in found for _, name in boxes})
    records = [
        ImageRecord(
            path=picture,
            image_id=picture.stem,
            width=width,
            height=height,
            boxes_xyxy=tuple(box for box, _ in boxes),
            names=tuple(name for _, name in boxes),
            weights=(1.0,) * len(boxes),
            absent=tuple(name for name in names if name not in {name for _, name in boxes}),
        )
        for picture, width, height, boxes in found
    ]
    return Annotations(records, names, problems)


def _beside(folder: Path) -> Path:
    pictures = folder.parent / "JPEGImages"
    return pictures if pictures.is_dir() else folder


def _parse(file: Path) -> Element:
    from defusedxml import DefusedXmlException, ElementTree

    try:
        root: Element | None = ElementTree.parse(file).getroot()
    except OSError as error:
        raise BadRecord(f"cannot be read: {error.strerror or error}") from error
    except (ParseError, DefusedXmlException) as error:
        raise BadRecord(f"not valid XML: {error}") from error
    if root is None or root.tag != "annotation":
        raise BadRecord(f"expected <annotation>, found <{'' if root is None else root.tag}>")
    return root


def _picture(root: Element, file: Path, folder: Path) -> Path:
    name = (root.findtext("filename") or "").strip()
    if name and (folder / name).is_file():
        return folder / name
    same = [p for p in folder.glob(f"{file.stem}.*") if p.suffix.lower() != ".xml"]
    if same:
        return same[0]
    return folder / (name or f"{file.stem}.jpg")


def _check_size(root: Element, width: int, height: int, picture: Path) -> None:
    said = (_number(root, "size/width"), _number(root, "size/height"))
    if said not in ((None, None), (0.0, 0.0), (width, height)):  # some tools write 0
        raise BadRecord(
            f"annotated as {said[0]:g}x{said[1]:g}, but {picture} is {width}x{height} when upright"
        )


def _object(entry: Element, width: int, height: int) -> tuple[Box, str]:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise BadRecord("has no <name>")
    sides: list[Any] = [_number(entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if None in sides:
        raise BadRecord(f"{name!r} has no <bndbox> with numbers xmin, ymin, xmax and ymax")
    left, top, right, bottom = sides
    return box_inside(left, top, right - left, bottom - top, width, height), name


def _number(entry: Element, path: str) -> float | None:
    try:
        return float(entry.findtext(path) or "")
    except ValueError:
        return None
