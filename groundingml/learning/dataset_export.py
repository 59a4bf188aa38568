"""Corrected annotations as a data set for other tools: COCO or YOLO.

An annotator who accepted a task without any box said that nothing is there, so its image is exported too.
Images are named by their URLs, and copied only where that is asked for.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundingml.learning.accepted import AcceptedTask
from groundingml.learning.regions import PercentBox

ReadImage = Callable[[str], bytes]
"""The bytes of the image at a URL; raises ValueError with the reason where there is none."""


class ExportError(RuntimeError):
    """The export cannot be written. The message says why."""


@dataclass
class ExportReport:
    """What was written."""

    images: int = 0
    empty: int = 0
    """Images in which nothing is."""
    boxes: int = 0
    without_label: int = 0
    """Boxes that were left out, since nobody gave them a label."""
    problems: list[str] = field(default_factory=list)
    """Images that were left out, and why."""


@dataclass(frozen=True)
class ExportImage:
    """One image of a task: ``name`` is unique in the export. boxes: (label, box in percent)."""

    name: str
    task: AcceptedTask
    url: str
    width: int | None
    height: int | None
    boxes: tuple[tuple[str, PercentBox], ...]


def images_of(task: AcceptedTask, report: ExportReport) -> Iterator[ExportImage]:
    """The images of a task with their boxes; a region with several labels is a box for each."""
    if not task.images:
        report.problems.append(f"task {task.task}: the URL of its image is not known")
    for image, url in task.images.items():
        regions = [region for region in task.regions if region.image == image]
        report.without_label += sum(not region.labels for region in regions)
        width, height = (task.width, task.height) if len(task.images) == 1 else (None, None)
        for region in regions:
            width, height = region.image_width or width, region.image_height or height
        suffix = "" if len(task.images) == 1 else "-" + re.sub(r"[^\w-]", "_", image)
        boxes = tuple((label, region.box) for region in regions for label in region.labels)
        yield ExportImage(f"task-{task.task}{suffix}", task, url, width, height, boxes)


def label_names(tasks: Iterable[AcceptedTask], first: Sequence[str] = ()) -> list[str]:
    """The labels in use: ``first`` the project's own, in its order, then others by name."""
    used = {label for task in tasks for region in task.regions for label in region.labels}
    own = list(dict.fromkeys(first))
    return own + sorted(used - set(own))


def export_coco(
    tasks: Sequence[AcceptedTask],
    labels: Sequence[str],
    folder: Path,
    read: ReadImage | None = None,
    on_image: Callable[[], object] = lambda: None,
) -> ExportReport:
    """Write ``annotations.json``: boxes in pixels of the upright images. With ``read`` the images are copied
    to ``images/``; without it `file_name` is the URL as Label Studio has it.

    Raises:
        ExportError: there is something in ``folder`` already.
        OSError: it cannot be written.
    """
    report = ExportReport()
    numbers = {label: number for number, label in enumerate(label_names(tasks, labels), start=1)}
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    with _whole(folder) as draft:
        for image in _every(tasks, report, on_image):
            copied = _copy(image, draft / "images", read, report)
            if copied is None:
                continue
            file_name, width, height = copied
            if not width or not height:
                report.problems.append(
                    f"task {image.task.task}: the size of its image is not known, and COCO needs it; it "
                    "comes with --copy-images"
                )
                continue
            _count(image, report)
            number = len(images) + 1
            named = {"id": number, "file_name": file_name, "width": width, "height": height}
            told = {
                "split": image.task.split,
                "task": image.task.task,
                "annotation": image.task.annotation_id,
            }
            images.append({**named, "url": image.url, **told})
            for label, box in image.boxes:
                pixels = [
                    round(side, 3)
                    for side in (
                        box.x * width / 100, box.y * height / 100,
                        box.width * width / 100, box.height * height / 100,
                    )
                ]  # fmt: skip
                of = {"id": len(boxes) + 1, "image_id": number, "category_id": numbers[label]}
                boxes.append({**of, "bbox": pixels, "area": round(pixels[2] * pixels[3], 3), "iscrowd": 0})
        content = {
            "info": {"description": "corrected annotations"},
            "images": images,
            "categories": [{"id": number, "name": label} for label, number in numbers.items()],
            "annotations": boxes,
        }
        (draft / "annotations.json").write_text(
            json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
    return report


def export_yolo(
    tasks: Sequence[AcceptedTask],
    labels: Sequence[str],
    folder: Path,
    read: ReadImage | None = None,
    on_image: Callable[[], object] = lambda: None,
) -> ExportReport:
    """Write ``data.yaml`` and ``labels/<split>/<name>.txt``, an empty file for an image in which nothing is.
    With ``read`` the images are copied to ``images/<split>/``; without it ``images.csv`` has their URLs. Held
    out tasks are in the split "val", all others in "train".

    Raises:
        ExportError: there is something in ``folder`` already.
        OSError: it cannot be written.
    """
    report = ExportReport()
    numbers = {label: number for number, label in enumerate(label_names(tasks, labels))}
    urls = ["name,split,url"]
    with _whole(folder) as draft:
        for kind, split in itertools.product(("images", "labels"), ("train", "val")):
            (draft / kind / split).mkdir(parents=True)
        for image in _every(tasks, report, on_image):
            split = "val" if image.task.split == "holdout" else "train"
            if _copy(image, draft / "images" / split, read, report) is None:
                continue
            _count(image, report)
            quoted = image.url.replace('"', '""')
            urls.append(f'{image.name},{split},"{quoted}"')
            lines = [
                f"{numbers[label]} {box.x / 100 + box.width / 200:.6f} {box.y / 100 + box.height / 200:.6f} "
                f"{box.width / 100:.6f} {box.height / 100:.6f}\n"
                for label, box in image.boxes
            ]
            (draft / "labels" / split / f"{image.name}.txt").write_text("".join(lines))
        (draft / "images.csv").write_text("\n".join(urls) + "\n", encoding="utf-8")
        names = "".join(f"  {number}: {json.dumps(label)}\n" for label, number in numbers.items())
        (draft / "data.yaml").write_text(
            f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}", encoding="utf-8"
        )
    return report


def _every(
    tasks: Iterable[AcceptedTask], report: ExportReport, on_image: Callable[[], object]
) -> Iterator[ExportImage]:
    for task in tasks:
        yield from images_of(task, report)
        on_image()


def _count(image: ExportImage, report: ExportReport) -> None:
    report.images += 1
    report.boxes += len(image.boxes)
    report.empty += not image.boxes


def _copy(
    image: ExportImage, folder: Path, read: ReadImage | None, report: ExportReport
) -> tuple[str, int | None, int | None] | None:
    """The file name and size of an image, copied if that is asked for; None when it cannot be read."""
    if read is None:
        return image.url, image.width, image.height
    from groundingml.learning.upright import upright

    try:
        encoded, ending, width, height = upright(read(image.url))
    except ValueError as error:
        report.problems.append(f"task {image.task.task}: {error}")
        return None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{image.name}{ending}").write_bytes(encoded)
    return f"images/{image.name}{ending}", width, height


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its place only when everything is in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists and is not empty; name another folder")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.absolute().parent))
    try:
        yield draft
        mask = os.umask(0)
        os.umask(mask)
        draft.chmod(0o777 & ~mask)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
