"""`groundingml label`: boxes for a whole Label Studio project, or for a folder without any server."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn
from urllib.parse import quote

import typer
from rich.console import Console

from groundingml.cli.detect import load_detector, read_workers
from groundingml.cli.files import find_images
from groundingml.cli.label_report import print_report
from groundingml.cli.options import (
    AllowCloud,
    AllowHosts,
    DataDir,
    Device,
    LabelStudioApiKey,
    LabelStudioUrl,
    Model,
    StoreUrl,
)
from groundingml.cli.progress import LongRun
from groundingml.cli.question import split_labels
from groundingml.cli.stores import recording, what_serves

if TYPE_CHECKING:
    from groundingml.inference import ObjectDetector
    from groundingml.labelstudio.label_config import LabelConfig
    from groundingml.labelstudio.labelling_report import LabellingReport
    from groundingml.labelstudio.predictor import Predicted

_INTERRUPTED = 130  # the exit status that shells give a command ended by Ctrl-C


class Format(str, Enum):
    """What `--folder` writes."""

    LABEL_STUDIO = "label-studio"
    COCO = "coco"
    JSONL = "jsonl"
    PARQUET = "parquet"


class Engine(str, Enum):
    """Where `--folder` and `--manifest` compute."""

    LOCAL = "local"
    RAY = "ray"


def label(
    context: typer.Context,
    url: LabelStudioUrl = None,
    api_key: LabelStudioApiKey = None,
    project: Annotated[
        int | None, typer.Option("--project", "-p", min=1, help="Number of the project to label.")
    ] = None,
    only_missing: Annotated[
        bool, typer.Option("--only-missing", help="Leave out tasks with a prediction of any model.")
    ] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Only tasks for which this holds, such as 'total_annotations = 0'; may be repeated.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=500, help="Predictions stored by one request to Label Studio.")
    ] = 50,
    allow_host: AllowHosts = None,
    folder: Annotated[
        str | None,
        typer.Option(
            "--folder", "-f", help="Label the images in this folder and below instead; s3://BUCKET/... too."
        ),
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(help="Label the images that this file names, a path or URL a line, instead."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="For --folder and --manifest: this machine, or a Ray cluster.")
    ] = Engine.LOCAL,
    ray_address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            help="For --engine ray: the cluster (else one that runs here, or one made for this run).",
        ),
    ] = None,
    shard_size: Annotated[
        int, typer.Option(min=1, help="For jsonl and parquet: images in each file of the output.")
    ] = 1000,
    labels: Annotated[
        str | None, typer.Option("--labels", "-l", help="For --folder: labels, separated by commas.")
    ] = None,
    label_config: Annotated[
        Path | None, typer.Option(help="For --folder: a Label Studio label config (XML) instead of --labels.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="For --folder: the file to write; jsonl and parquet: a folder."),
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="For --folder: what to write.")
    ] = Format.LABEL_STUDIO,
    image_url_prefix: Annotated[
        str | None,
        typer.Option(
            help="For --folder: what goes before an image's path in its URL; by default "
            "/data/local-files/?d=FOLDER/ (Label Studio's local files)."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="For --folder: replace the output if it exists.")
    ] = False,
    model: Model = "nano",
    device: Device = "auto",
    allow_cloud: AllowCloud = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    workers: Annotated[
        str,
        typer.Option(
            envvar="GROUNDINGML_WORKERS",
            help="For --folder: processes; auto is one for each core once that pays; 1 is none but this. "
            "With Ray: models in the cluster.",
        ),
    ] = "auto",
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """Label a whole Label Studio project, or a folder of images without any server.

    [bold]Examples[/bold]

      groundingml label --url http://localhost:8080 --api-key KEY --project 7

      groundingml label --project 7 --only-missing --filter 'total_annotations = 0' --model llmdet-tiny

      groundingml label --folder photos/ --labels "cat, cup" --output tasks.json

      groundingml label --folder photos/ --label-config config.xml --format coco --output coco.json

      groundingml label --folder s3://bucket/photos --labels cat --engine ray --format parquet --output boxes/

    A project is labelled by the version that serves it, if it has one, unless --model is given here; its
    remembered prompt counts too. Tasks that already have such a prediction are left out, so a run that was
    interrupted or killed goes on when the same command is started again. Ctrl-C stores what is done first.
    One failing task does not stop the others; it is reported at the end, and the exit status is 1.
    """
    shown = Console(stderr=True)
    logging.basicConfig(level=logging.ERROR, format="groundingml: %(message)s")
    logging.getLogger("groundingml.inference.cloud_detector").setLevel(logging.WARNING)
    if (folder is not None) + (project is not None) + (manifest is not None) != 1:
        _fail("say what to label with one of --project, --folder and --manifest", 2)
    many = manifest is not None or engine is Engine.RAY or output_format in (Format.JSONL, Format.PARQUET)
    if many or "://" in (folder or ""):
        from groundingml.cli.label_many import Many, label_many

        if project is not None:
            _fail("--engine ray, jsonl and parquet go with --folder and --manifest", 2)
        place = Many(
            folder, manifest, labels, label_config, output, output_format.value, image_url_prefix, overwrite,
            engine.value, ray_address, shard_size, workers, device, model,
        )  # fmt: skip
        report = label_many(place, lambda: load_detector(model, device, shown, allow_cloud), shown, _stopping)
    elif folder is not None:
        report = _label_folder(
            Path(folder), labels, label_config, Path(output) if output else None, output_format,
            image_url_prefix, overwrite, lambda: load_detector(model, device, shown, allow_cloud), shown,
            model, workers,
        )  # fmt: skip
    else:
        assert project is not None
        if labels is not None or label_config is not None or output is not None:
            _fail("--labels, --label-config and --output go with --folder; a project has its own labels", 2)
        with recording(data_dir, store) as (known, record):
            own, prompts = what_serves(known, data_dir, project)
            source = context.get_parameter_source("model")
            if source is not None and source.name == "COMMANDLINE":
                own = None
            if own is not None:
                typer.echo(f"groundingml: project {project} has a version of its own: {own}", err=True)
            report = _label_project(
                url, api_key, project, only_missing, filters or [], batch, tuple(allow_host or ()),
                own or model, device, allow_cloud, record, prompts, shown,
            )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_report(report, "image" if project is None else "task", shown)
    if report.interrupted:
        typer.echo("groundingml: interrupted; start the same command again to go on", err=True)
        raise typer.Exit(_INTERRUPTED)
    if report.stopped is not None:
        typer.echo(f"groundingml: stopped: {report.stopped}", err=True)
        typer.echo("groundingml: what is stored stays; start the same command again to go on", err=True)
    if report.stopped is not None or report.failed:
        raise typer.Exit(1)


def _label_project(
    url: str | None,
    api_key: str | None,
    project: int,
    only_missing: bool,
    filters: list[str],
    batch: int,
    allow_hosts: tuple[str, ...],
    model: str,
    device: str,
    allow_cloud: bool,
    record: Callable[[Predicted], None],
    prompts: Mapping[str, str],
    shown: Console,
) -> LabellingReport:
    if not url or not api_key:
        _fail(
            "a project needs Label Studio's address and an access token: --url http://localhost:8080 and "
            "--api-key (or LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY); the token is under Account & Settings",
            2,
        )
    from groundingml.labelstudio.addresses import FetchError
    from groundingml.labelstudio.api_client import ApiError, LabelStudioApi
    from groundingml.labelstudio.label_config import LabelConfigError
    from groundingml.labelstudio.model_pool import ModelPool
    from groundingml.labelstudio.predictor import Predictor
    from groundingml.labelstudio.project_labelling import ProjectLabelling
    from groundingml.labelstudio.project_work import project_now
    from groundingml.labelstudio.settings import Settings, SettingsError
    from groundingml.labelstudio.task_filters import FilterError, parse_filter

    stop = threading.Event()
    try:
        wanted = [parse_filter(text) for text in filters]
        settings = Settings(
            model=model,
            device=device,
            label_studio_url=url,
            label_studio_api_key=api_key,
            allow_hosts=allow_hosts,
        )
        api = LabelStudioApi(url, api_key, pause=stop.wait)
    except (FilterError, SettingsError, FetchError) as error:
        _fail(str(error), 2)
    try:
        now = project_now(api, project)
    except ApiError as error:
        missing = f"there is no project {project}, or this user may not see it"
        _fail(missing if error.status == 404 else str(error), 1)
    except LabelConfigError as error:
        _fail(f"project {project}: {error}", 1)
    pool = ModelPool(model, device, load_detector(model, device, shown, allow_cloud))
    predictor = Predictor(settings, pool, on_predicted=record)
    served = asyncio.run(pool.ready(0))
    work = now.work(served, filters=wanted, only_missing=only_missing, batch=batch, prompts=prompts)
    try:
        with LongRun(f"project {project}", "tasks", shown) as progress, _stopping(stop, shown):
            job = ProjectLabelling(
                api, predictor, work, stop=stop, on_start=progress.begin, on_task=progress.advance
            )
            report = asyncio.run(job.run())
    finally:
        predictor.close()
        api.close()
    if report.labelled and not now.shows(work.model_version):
        typer.echo(
            f"groundingml: to show these boxes choose the version {work.model_version} in the project's "
            f"Settings, Annotation (it shows {now.about['model_version']})",
            err=True,
        )
    return report


def _label_folder(
    folder: Path,
    labels: str | None,
    label_config: Path | None,
    output: Path | None,
    output_format: Format,
    image_url_prefix: str | None,
    overwrite: bool,
    load: Any,
    shown: Console,
    model: str,
    workers: str,
) -> LabellingReport:
    from groundingml.labelstudio.folder_labelling import FolderWork, config_for_labels, label_folder, query_of
    from groundingml.labelstudio.label_config import LabelConfigError, parse_label_config
    from groundingml.labelstudio.predictor import detector_labels

    if (labels is None) == (label_config is None):
        _fail("say what to look for with one of --labels and --label-config", 2)
    if output is None:
        _fail("say where to write with --output, for example --output tasks.json", 2)
    if not folder.is_dir():
        _fail(f"{folder} is not a folder", 2)
    if output.exists() and not overwrite:
        _fail(f"{output} exists; add --overwrite to replace it", 2)
    files = find_images([str(folder)])
    if not files:
        _fail(f"no images found in {folder}", 2)
    try:
        xml = _read(label_config) if label_config else config_for_labels(split_labels(labels or ""))
        config: LabelConfig = parse_label_config(xml)
        query = query_of(config)
        crew = read_workers(workers)
    except (LabelConfigError, ValueError) as error:
        _fail(str(error), 2)
    name = folder.resolve().name
    prefix = image_url_prefix
    if prefix is None:
        prefix = f"/data/local-files/?d={quote(name)}/"
    detector: ObjectDetector = load()
    stop = threading.Event()
    kind: Literal["coco", "label-studio"] = "coco" if output_format is Format.COCO else "label-studio"
    work = FolderWork(folder, files, config, output, kind, prefix)
    try:
        detector.plan(labels=detector_labels(query, detector.thresholds))
        with LongRun(str(folder), "images", shown) as progress, _stopping(stop, shown):
            report = label_folder(
                detector, work, is_stopped=stop.is_set, on_start=progress.begin, on_image=progress.advance,
                source=model, workers=crew,
            )  # fmt: skip
    except ValueError as error:  # a label that is too long for the model
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"the result cannot be written: {error}", 1)
    if report.left == 0:
        typer.echo(f"groundingml: written to {output}", err=True)
        if output_format is Format.LABEL_STUDIO and label_config is None:
            typer.echo(f"groundingml: import it into a project with this label config:\n{xml}", err=True)
    return report


@contextmanager
def _stopping(stop: threading.Event, shown: Console) -> Iterator[None]:
    """Ctrl-C and SIGTERM set ``stop``; a second one ends the command at once."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        shown.print("groundingml: stopping; what is at hand is finished (again: stop at once)", markup=False)

    before = {each: signal.signal(each, on_signal) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the label config {file} cannot be read: {error}") from error


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(status)
