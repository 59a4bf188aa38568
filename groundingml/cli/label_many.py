"""`groundingml label` for images without number: buckets, manifests, Ray clusters, outputs in many files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

import typer
from rich.console import Console

from groundingml.cli.detect import read_workers
from groundingml.cli.files import is_image_name
from groundingml.cli.progress import LongRun
from groundingml.cli.question import split_labels

if TYPE_CHECKING:
    from groundingml.inference import ObjectDetector
    from groundingml.inference.listings import Listed
    from groundingml.labelstudio.label_config import LabelConfig
    from groundingml.labelstudio.labelling_report import LabellingReport

Stopping = Callable[[threading.Event, Console], AbstractContextManager[None]]


@dataclass(frozen=True)
class Many:
    """The options of the command."""

    folder: str | None
    manifest: str | None
    labels: str | None
    label_config: Path | None
    output: str | None
    format: str
    image_url_prefix: str | None
    overwrite: bool
    engine: str
    ray_address: str | None
    shard_size: int
    workers: str
    device: str
    model: str

    @property
    def place(self) -> str:
        """Where the images are from."""
        given = self.folder or self.manifest or ""
        return given if "://" in given else str(Path(given).resolve())

    def images(self) -> Iterator[Listed]:
        """The images, listed as they are needed."""
        from groundingml.inference.listings import list_images, read_manifest

        if self.manifest is not None:
            return read_manifest(self.manifest)
        return list_images(self.folder or "", is_image_name)


def label_many(
    many: Many, load: Callable[[], ObjectDetector], shown: Console, stopping: Stopping
) -> LabellingReport:
    """Label the images into shards; for COCO and Label Studio, then into the one file they are."""
    from groundingml.inference.listings import ListingError
    from groundingml.inference.ray_engine import RayMissing
    from groundingml.labelstudio.folder_labelling import FolderWork, config_for_labels, write_results
    from groundingml.labelstudio.label_config import LabelConfigError, parse_label_config
    from groundingml.labelstudio.shard_labelling import label_into_shards, with_boxes
    from groundingml.labelstudio.shards import ShardError, Shards

    if (many.labels is None) == (many.label_config is None):
        _fail("say what to look for with one of --labels and --label-config", 2)
    if many.output is None:
        _fail("say where to write with --output, for example --output boxes/", 2)
    in_shards = many.format in ("jsonl", "parquet")
    if not in_shards and "://" in many.output:
        _fail(f"--format {many.format} is one local file; use --format jsonl or parquet for a bucket", 2)
    if not in_shards and Path(many.output).exists() and not many.overwrite:
        _fail(f"{many.output} exists; add --overwrite to replace it", 2)
    try:
        config = _config(many, config_for_labels, parse_label_config)
        crew = read_workers(many.workers)
        images = many.images()
        first = next(images, None)
        if first is None:
            _fail(f"no images found in {many.place}", 2)
        folder = many.output if in_shards else f"{many.output}.shards"
        shards = Shards(folder, "parquet" if many.format == "parquet" else "jsonl")
    except (LabelConfigError, ListingError, ShardError, ValueError) as error:
        _fail(str(error), 2)
    detector = load()
    stop = threading.Event()
    total = sum(1 for _ in many.images())
    try:
        with LongRun(many.place, "images", shown) as progress, stopping(stop, shown):
            progress.begin(total)
            report = label_into_shards(
                detector, many.model, many.images(), config, shards, place=many.place,
                engine="ray" if many.engine == "ray" else "local", address=many.ray_address, workers=crew,
                device=many.device, shard_size=many.shard_size, overwrite=many.overwrite,
                is_stopped=stop.is_set, on_image=progress.advance,
            )  # fmt: skip
        if report.left or report.interrupted or report.stopped:
            return report
        if in_shards:
            typer.echo(f"groundingml: written to {folder}", err=True)
            return report
        prefix = many.image_url_prefix
        if prefix is None:
            name = Path(many.folder).resolve().name if many.folder else ""
            prefix = f"/data/local-files/?d={quote(name)}/" if name else "/data/local-files/?d="
        work = FolderWork(
            Path(), (), config, Path(many.output), "coco" if many.format == "coco" else "label-studio", prefix
        )
        write_results(work, with_boxes(shards), report.model_version, detector.thresholds)
        shards.remove()
        typer.echo(f"groundingml: written to {many.output}", err=True)
    except (ShardError, ListingError, LabelConfigError) as error:
        _fail(str(error), 2)
    except (RayMissing, ValueError) as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"the result cannot be written: {error}", 1)
    return report


def _config(
    many: Many, config_for_labels: Callable[[list[str]], str], parse: Callable[[str], LabelConfig]
) -> LabelConfig:
    if many.label_config is None:
        return parse(config_for_labels(split_labels(many.labels or "")))
    try:
        return parse(many.label_config.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the label config {many.label_config} cannot be read: {error}") from error


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(status)
