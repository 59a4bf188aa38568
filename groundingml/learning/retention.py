"""What a model must not forget: images of other things, on which it is measured before and after."""

from __future__ import annotations

from pathlib import Path

from groundingml.inference import Detector
from groundingml.training import Annotations, ImageRecord, read_coco

EVERYDAY = Path(__file__).resolve().parents[1] / "embedded" / "everyday"
TRUTH_SCORE = 0.25
"""What the base model finds with this score counts as there."""


def read_retention(given: str) -> Annotations:
    """A user's set, ``ANNOTATIONS.json:FOLDER``.

    Raises:
        ValueError: not of that form, or no usable COCO annotations.
    """
    file, separator, folder = given.rpartition(":")
    if not separator or not file or not folder:
        raise ValueError(f"a retention set is given as ANNOTATIONS.json:FOLDER, not {given!r}")
    return read_coco(file, folder, bad_records="skip")


def everyday_retention(base: Detector, without: set[str]) -> Annotations:
    """What the base model finds on the photos that ship with the package, as the truth to be found again.

    It tells whether a version answers as its base model does, not whether the answers are right. ``without``:
    labels that are being learned, in lower case; those may change.
    """
    names = [
        name
        for name in (EVERYDAY / "names.txt").read_text("utf-8").splitlines()
        if name.lower() not in without
    ]
    records = []
    for path in sorted(EVERYDAY.glob("*.jpg")):
        found = base(path, labels=names, threshold=TRUTH_SCORE)
        height, width = found.image_size
        records.append(
            ImageRecord(
                path=path,
                image_id=path.stem,
                width=width,
                height=height,
                boxes_xyxy=tuple(tuple(float(edge) for edge in box) for box in found.boxes_xyxy),  # type: ignore[misc]
                names=tuple(found.labels),
                weights=(1.0,) * len(found),
                absent=(),
            )
        )
    return Annotations(records, names, [])
