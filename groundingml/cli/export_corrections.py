"""`groundingml export corrections`: the corrected annotations of a project as a data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from groundingml.cli.options import AllowHosts, DataDir, LabelStudioApiKey, LabelStudioUrl, StoreUrl
from groundingml.cli.progress import LongRun
from groundingml.cli.stores import fail, open_data

if TYPE_CHECKING:
    from groundingml.store import Store

_MOST_PROBLEMS = 20


class DatasetFormat(str, Enum):
    """What is written."""

    COCO = "coco"
    YOLO = "yolo"


def export_corrections(
    project: Annotated[str, typer.Option("--project", "-p", help="Number of the Label Studio project.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; new or empty.")],
    output_format: Annotated[
        DatasetFormat, typer.Option("--format", "-f", help="Layout of the data set.")
    ] = DatasetFormat.COCO,
    copy_images: Annotated[
        bool, typer.Option("--copy-images", help="Copy the images too, instead of naming their URLs.")
    ] = False,
    url: LabelStudioUrl = None,
    api_key: LabelStudioApiKey = None,
    allow_host: AllowHosts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """Write the corrected annotations of a project as a data set, COCO or YOLO.

    [bold]Examples[/bold]

      groundingml export corrections --project 7 --output cats/

      groundingml export corrections --project 7 --format yolo --copy-images --output cats/

    Of each task the newest accepted annotation counts; skipped ones do not. Tasks that were accepted without
    a box are in it, as images in which nothing is. Run `groundingml sync --project 7` first if the server was
    stopped meanwhile.
    """
    _, opened = open_data(data_dir, store)
    from groundingml.learning.accepted import accepted_tasks
    from groundingml.learning.dataset_export import ExportError, export_coco, export_yolo

    with opened:
        with opened.read() as session:
            tasks = accepted_tasks(session, project)
        labels = _labels(opened, project)
    if not tasks:
        fail(
            f"no corrected task of project {project} is known; groundingml sync --project {project} gets them"
        )
    read = _reader(url, api_key, tuple(allow_host or ())) if copy_images else None
    shown = Console(stderr=True)
    write = export_coco if output_format is DatasetFormat.COCO else export_yolo
    try:
        with LongRun("exporting", "tasks", shown) as progress:
            progress.begin(len(tasks))
            report = write(tasks, labels, output, read, progress.advance)
    except ExportError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{output} cannot be written: {error.strerror or error}")
    except KeyboardInterrupt:
        typer.echo("groundingml: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    for problem in report.problems[:_MOST_PROBLEMS]:
        typer.echo(f"groundingml: left out {problem}", err=True)
    if len(report.problems) > _MOST_PROBLEMS:
        typer.echo(f"groundingml: ... and {len(report.problems) - _MOST_PROBLEMS} more", err=True)
    if as_json:
        typer.echo(json.dumps({"output": str(output), **vars(report)}, ensure_ascii=False))
    else:
        left = f", {report.without_label} boxes without a label left out" if report.without_label else ""
        typer.echo(f"{report.images} images ({report.empty} empty), {report.boxes} boxes{left}: {output}")
    if report.problems:
        raise typer.Exit(1)


def _labels(store: Store, project: str) -> list[str]:
    """The project's own labels, in the order of its config."""
    from groundingml.labelstudio.label_config import LabelConfigError, parse_label_config
    from groundingml.store.tables import Project

    with store.read() as session:
        row = session.get(Project, project)
        xml = row.label_config if row is not None else None
    try:
        config = parse_label_config(xml) if xml else None
    except LabelConfigError:
        config = None
    return [label.name for control in config.controls for label in control.labels] if config else []


def _reader(url: str | None, api_key: str | None, allow_hosts: tuple[str, ...]) -> Callable[[str], bytes]:
    from groundingml.inference import ImageError
    from groundingml.labelstudio.addresses import FetchError
    from groundingml.labelstudio.images import ImageFetcher
    from groundingml.labelstudio.settings import Settings, SettingsError

    try:
        fetcher = ImageFetcher(
            Settings(label_studio_url=url, label_studio_api_key=api_key, allow_hosts=allow_hosts)
        )
    except SettingsError as error:
        fail(str(error), 2)

    def read(reference: str) -> bytes:
        try:
            return fetcher.read(reference)
        except (FetchError, ImageError) as error:
            raise ValueError(str(error)) from error

    return read
