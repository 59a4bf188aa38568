"""Reading annotations of any format into one: records with boxes in pixels.

>>> annotations = read_annotations("train.json", "images")
"""

from __future__ import annotations

from pathlib import Path

from groundingml.training.annotations import Annotations, DatasetError
from groundingml.training.readers.coco import read_coco
from groundingml.training.readers.label_studio import (
    LabelledImage,
    LabelledRegion,
    read_label_studio,
    records_of,
    regions_of,
)
from groundingml.training.readers.records import BadRecords, read_json
from groundingml.training.readers.voc import read_voc
from groundingml.training.readers.yolo import read_yolo

FORMATS = ("coco", "yolo", "voc", "label-studio")


def read_annotations(
    data: str | Path,
    images: str | Path | None = None,
    kind: str = "auto",
    bad_records: BadRecords = "refuse",
    decode_images: bool = False,
    split: str = "train",
) -> Annotations:
    """Read annotations; see `read_coco`, `read_yolo`, `read_voc` and `read_label_studio` for the formats.

    kind: one of FORMATS, or "auto" to tell it from the file. images: by default the folder of ``data``.
    split: of a YOLO data.yaml. A bad record is refused or skipped, and named with its place either way.

    Raises:
        DatasetError: nothing usable, or bad records that are to be refused.
    """
    data = Path(data)
    kind = detect_format(data) if kind == "auto" else kind
    if kind == "yolo":
        return read_yolo(data, images, bad_records, decode_images, split)
    if kind == "voc":
        return read_voc(data, images, bad_records, decode_images)
    folder = Path(images) if images is not None else data.parent
    if kind == "coco":
        return read_coco(data, folder, bad_records, decode_images)
    if kind == "label-studio":
        return read_label_studio(data, folder, bad_records, decode_images)
    raise ValueError(f"there is no format {kind!r}; choose one of {', '.join(FORMATS)}")


def detect_format(data: Path) -> str:
    """Which of FORMATS a file or folder has.

    Raises:
        DatasetError: none of them.
    """
    if data.is_dir():
        if any(data.glob("*.xml")):
            return "voc"
        if (data / "classes.txt").is_file():
            return "yolo"
        raise DatasetError(
            str(data), ["neither XML files (VOC) nor label files with a classes.txt (YOLO) in this folder"]
        )
    if data.suffix.lower() in (".yaml", ".yml"):
        return "yolo"
    if data.suffix.lower() == ".xml":
        return "voc"
    return "label-studio" if isinstance(read_json(data), list) else "coco"


__all__ = [
    "FORMATS",
    "Annotations",
    "BadRecords",
    "DatasetError",
    "LabelledImage",
    "LabelledRegion",
    "detect_format",
    "read_annotations",
    "read_coco",
    "read_label_studio",
    "read_voc",
    "read_yolo",
    "records_of",
    "regions_of",
]
