"""Label a folder of images without any server, into a Label Studio import file or COCO JSON.

Each finished image is one line of a journal beside the output, so a run that is killed goes on where it was.
The output itself is written at the end, whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from groundingml.labelstudio.label_config import LabelConfig, LabelConfigError
from groundingml.labelstudio.labelling_report import LabellingReport
from groundingml.labelstudio.predictions import prediction, regions_from_detections
from groundingml.labelstudio.predictor import detector_labels, detector_options
from groundingml.labelstudio.prompts import Query, query_for_labels
from groundingml.labelstudio.versions import model_version

if TYPE_CHECKING:
    from groundingml.inference import Detections, ObjectDetector, Thresholds

Format = Literal["label-studio", "coco"]


@dataclass(frozen=True)
class FolderWork:
    """What to label and where the result goes."""

    folder: Path
    files: Sequence[Path]
    """Images inside ``folder``."""
    config: LabelConfig
    output: Path
    format: Format
    url_prefix: str
    """What goes before an image's path inside the folder to make the URL that Label Studio will show."""

    @property
    def journal(self) -> Path:
        """Where finished images are kept until the output is written."""
        return self.output.with_name(f"{self.output.name}.partial.jsonl")


def config_for_labels(labels: Sequence[str]) -> str:
    """A label config with these labels, for a project that the output can be imported into."""
    tags = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in dict.fromkeys(labels))
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <RectangleLabels name="label" toName="image">\n{tags}\n  </RectangleLabels>\n</View>'
    )


def query_of(config: LabelConfig) -> Query:
    """What a config asks of each image of a folder.

    Raises:
        LabelConfigError: when it needs more of a task than one image.
    """
    if len(config.images) > 1:
        names = ", ".join(image.name for image in config.images)
        raise LabelConfigError(f"This label config has several images ({names}); a folder gives one a task.")
    for control in config.controls:
        if control.labels_key is not None:
            raise LabelConfigError(
                f'<RectangleLabels name="{control.name}"> takes its labels from each task '
                f"(${control.labels_key}), which images of a folder do not have; write <Label> tags."
            )
    return query_for_labels(config, config.images[0], {})


def label_folder(
    detector: ObjectDetector,
    work: FolderWork,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
    on_start: Callable[[int], object] = lambda total: None,
    on_image: Callable[[], object] = lambda: None,
    source: str | None = None,
    workers: int | Literal["auto"] = "auto",
) -> LabellingReport:
    """Label all images and write the output; an image that fails is left out of it and named in the report.

    When it is stopped, nothing is written but the journal, from which the next run goes on.

    Args:
        source: where ``detector`` was loaded from, so that ``workers`` can load it too; None for no workers.
        workers: as in ``detect_many``.

    Raises:
        LabelConfigError: when the config does not fit a folder.
        OSError: when the journal or the output cannot be written.
    """
    from groundingml.inference import ImageError, RunStopped, detect_many

    query = query_of(work.config)
    version = model_version(detector.checkpoint_digest or detector.name, work.config)
    names = {file.relative_to(work.folder).as_posix(): file for file in work.files}
    done = dict(_read_journal(work.journal, version, names))
    report = LabellingReport(version, total=len(names) - len(done), already=len(done))
    on_start(report.total)
    wanted, options = detector_labels(query, detector.thresholds), detector_options(query)
    todo = [name for name in names if name not in done]
    stamps: dict[str, list[int]] = {}

    def files() -> Iterator[Path]:
        for name in todo:
            if is_stopped():  # what was handed out before is finished
                return
            with contextlib.suppress(OSError):  # the detector will say what is wrong with it
                stamps[name] = _stamp(names[name])
            yield names[name]

    found = detect_many(
        source, files(), wanted, workers=workers, detector=detector, count=len(todo), **options
    )
    with _open_journal(work.journal, version, done) as journal, contextlib.closing(found):
        try:
            for number, result, seconds, _ in found:
                name = todo[number]
                if isinstance(result, ImageError):
                    report.fail(name, result.reason)
                else:
                    done[name] = found_in(result)
                    _append(journal, {"file": name, "of": stamps.pop(name, None), **done[name]})
                    report.add(name, result.labels, seconds)
                on_image()
        except RunStopped as error:
            report.stopped = str(error)
    report.interrupted = report.left > 0 and report.stopped is None
    if report.left == 0:
        finished = {name: done[name] for name in names if name in done}
        write_results(work, finished, version, detector.thresholds)
        work.journal.unlink(missing_ok=True)
    return report


def write_results(
    work: FolderWork, done: dict[str, dict[str, Any]], version: str, thresholds: Thresholds
) -> None:
    """Write what was found (see ``found_in``), by the image's name, in the format that ``work`` asks for.

    Raises:
        OSError: it cannot be written; then nothing is.
    """
    query = query_of(work.config)
    content = (
        _coco(done, query)
        if work.format == "coco"
        else _import_file(done, query, version, thresholds, work.url_prefix)
    )
    _write(work.output, json.dumps(content, ensure_ascii=False, indent=1))


def found_in(detections: Detections) -> dict[str, Any]:
    """Plain values: size, boxes in pixels, scores and labels."""
    height, width = detections.image_size
    return {
        "width": int(width),
        "height": int(height),
        "boxes_xyxy": [[round(float(edge), 3) for edge in box] for box in detections.boxes_xyxy],
        "scores": [round(float(score), 6) for score in detections.scores],
        "labels": list(detections.labels),
    }


def _stamp(file: Path) -> list[int]:
    """Tells whether a file is still the one that was labelled."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_journal(
    journal: Path, version: str, names: dict[str, Path]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Images that are done: labelled by this very version, and not changed since."""
    try:
        lines = journal.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the last line of a killed run may be cut
            records.append(json.loads(line))
    if not records or records[0] != {"model_version": version}:
        return
    for record in records[1:]:
        name, stamp = (record.pop("file"), record.pop("of")) if isinstance(record, dict) else ("", None)
        file = names.get(name)
        if file is not None and file.exists() and stamp == _stamp(file):
            yield name, record


@contextlib.contextmanager
def _open_journal(journal: Path, version: str, done: dict[str, Any]) -> Iterator[TextIO]:
    """The journal, ready to append to; begun anew unless it goes on."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a" if done else "w", encoding="utf-8") as stream:
        # Begins a new line, so that one which was cut by a kill spoils nothing but itself.
        stream.write("\n" if done else json.dumps({"model_version": version}) + "\n")
        yield stream


def _append(journal: TextIO, record: dict[str, Any]) -> None:
    journal.write(json.dumps(record, ensure_ascii=False) + "\n")
    journal.flush()


def _import_file(
    done: dict[str, dict[str, Any]], query: Query, version: str, thresholds: Thresholds, url_prefix: str
) -> list[dict[str, Any]]:
    """Tasks with predictions, as Label Studio imports them."""
    return [
        {
            # Images of a bucket have a URL already, which Label Studio reads through its cloud storage.
            "data": {query.image.key: name if "://" in name else url_prefix + quote(name)},
            "predictions": [
                prediction(
                    regions_from_detections(_detections(found), query, thresholds),
                    version,
                    query.options.task_score,
                )
            ],
        }
        for name, found in done.items()
    ]


def _detections(found: dict[str, Any]) -> Detections:
    from groundingml.inference import Detections

    return Detections(
        boxes_xyxy=np.array(found["boxes_xyxy"], dtype=np.float32).reshape(-1, 4),
        scores=np.array(found["scores"], dtype=np.float32),
        labels=found["labels"],
        label_ids=np.zeros(len(found["labels"]), dtype=np.int64),
        image_size=(found["height"], found["width"]),
    )


def _coco(done: dict[str, dict[str, Any]], query: Query) -> dict[str, Any]:
    """A COCO data set: boxes [x, y, width, height] in pixels of the upright image, with scores."""
    categories = {wanted.name: number for number, wanted in enumerate(query.wanted, start=1)}
    annotations: list[dict[str, Any]] = []
    for image_id, found in enumerate(done.values(), start=1):
        for (x0, y0, x1, y1), score, label in zip(
            found["boxes_xyxy"], found["scores"], found["labels"], strict=True
        ):
            box = [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[label],
                    "bbox": box,
                    "area": round(box[2] * box[3], 3),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    return {
        "info": {"description": "predictions of groundingml"},
        "images": [
            {"id": number, "file_name": name, "width": found["width"], "height": found["height"]}
            for number, (name, found) in enumerate(done.items(), start=1)
        ],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": annotations,
    }


def _write(target: Path, text: str) -> None:
    """Write the whole file or none."""
    handle, name = tempfile.mkstemp(prefix=".groundingml-", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
