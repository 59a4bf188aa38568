"""Label images without number, from a folder, a bucket or a manifest, into shards; on this machine or a Ray
cluster.

What is written is done: a run that is killed loses at most one shard's work, and the same call goes on after
the last record, having compared the names it skips.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from groundingml.labelstudio.folder_labelling import found_in, query_of
from groundingml.labelstudio.labelling_report import LabellingReport
from groundingml.labelstudio.predictor import detector_labels, detector_options
from groundingml.labelstudio.shards import ShardError, Shards
from groundingml.labelstudio.versions import model_version

if TYPE_CHECKING:
    from groundingml.inference import BulkResult, ObjectDetector
    from groundingml.inference.listings import Listed
    from groundingml.labelstudio.label_config import LabelConfig

Engine = Callable[..., Generator["BulkResult", None, None]]
Find = Literal["local", "ray"]


def label_into_shards(
    detector: ObjectDetector,
    source: str,
    images: Iterable[Listed],
    config: LabelConfig,
    shards: Shards,
    *,
    place: str,
    engine: Find = "local",
    address: str | None = None,
    workers: int | Literal["auto"] = "auto",
    device: str = "auto",
    shard_size: int = 1000,
    overwrite: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
    on_image: Callable[[], object] = lambda: None,
) -> LabellingReport:
    """Label all ``images``; one that fails is a record with its ``error``, and named in the report.

    Args:
        detector: the model, for its version and, with engine "local", its work.
        source: what workers load it from.
        place: where ``images`` are from; another place is another run.
        address: of the Ray cluster (see ``detect_many_on_ray``).

    Raises:
        ShardError: ``shards`` hold another run, or the list of images has changed since.
        LabelConfigError: when the config needs more than one image of a task.
        OSError: when results cannot be written.
        ListingError, RayMissing, RunStopped: as listing and engine raise them.
    """
    from groundingml.inference import ImageError, RunStopped

    version = model_version(detector.checkpoint_digest or detector.name, config)
    shards.begin({"model_version": version, "images": place}, overwrite=overwrite)
    listing = iter(images)
    report = LabellingReport(version, already=_skip(shards, listing))
    under_way: dict[int, str] = {}

    def locations() -> Iterator[str]:
        for number, image in enumerate(listing):
            if is_stopped():
                return
            under_way[number] = image.name
            report.total += 1
            yield image.location

    found = _engine(engine, detector, source, config, address, workers, device)(locations())
    records: list[dict[str, Any]] = []
    with contextlib.closing(found):
        try:
            for number, result, seconds, _ in found:
                name = under_way.pop(number)
                if isinstance(result, ImageError):
                    report.fail(name, result.reason)
                    records.append(_failed(name, result.reason))
                else:
                    report.add(name, result.labels, seconds)
                    records.append({"image": name, **found_in(result), "error": None})
                on_image()
                if len(records) >= shard_size:
                    shards.append(records)
                    records = []
                if is_stopped():
                    break
        except RunStopped as error:
            report.stopped = str(error)
        finally:
            if records:
                shards.append(records)
    report.interrupted = is_stopped() and (bool(under_way) or next(listing, None) is not None)
    return report


def _skip(shards: Shards, listing: Iterator[Listed]) -> int:
    done = 0
    for record in shards.records():
        image = next(listing, None)
        if image is None or image.name != record["image"]:
            now = "nothing" if image is None else image.name
            raise ShardError(
                f"the list of images has changed since {shards.folder} was begun: image {done + 1} was "
                f"{record['image']} and is {now}; name another --output, or add --overwrite to begin anew"
            )
        done += 1
    return done


def _engine(
    engine: Find,
    detector: ObjectDetector,
    source: str,
    config: LabelConfig,
    address: str | None,
    workers: int | Literal["auto"],
    device: str,
) -> Engine:
    query = query_of(config)
    labels, options = detector_labels(query, detector.thresholds), detector_options(query)
    detector.plan(labels=labels)
    if engine == "ray":
        from groundingml.inference.ray_engine import detect_many_on_ray

        return lambda locations: detect_many_on_ray(
            source, locations, labels, workers=workers, device=device, address=address, **options
        )
    from groundingml.inference import detect_many

    return lambda locations: detect_many(
        source, locations, labels, workers=workers, detector=detector, **options
    )


def _failed(name: str, reason: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"width": None, "height": None, "boxes_xyxy": [], "scores": [], "labels": []}
    return {"image": name, **nothing, "error": reason}


def with_boxes(shards: Shards) -> dict[str, dict[str, Any]]:
    """What was found in each image that could be read, as ``folder_labelling`` writes it to one file."""
    return {
        record["image"]: record
        for record in itertools.filterfalse(lambda record: record["error"] is not None, shards.records())
    }
