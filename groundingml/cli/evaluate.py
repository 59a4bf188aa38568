"""`groundingml evaluate`: how good a model is on annotated images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from groundingml.cli.options import AllowCloud, Device, Model
from groundingml.cli.progress import LongRun
from groundingml.cli.question import read_labels

if TYPE_CHECKING:
    from groundingml.inference import Label
    from groundingml.learning.measuring import Measurement

_MOST_ROWS = 100


def evaluate(
    data: Annotated[Path, typer.Option(help="Annotations in COCO format.")],
    images: Annotated[Path, typer.Option(help="Folder that the file names in it are relative to.")],
    model: Model = "nano",
    device: Device = "auto",
    allow_cloud: AllowCloud = False,
    prompts: Annotated[
        Path | None,
        typer.Option(help='What to ask for a label: a .json object such as {"RBC": "red blood cell"}.'),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    skip_bad_records: Annotated[
        bool, typer.Option(help="Leave out records that cannot be used, instead of stopping at them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for precision-recall curves and pictures of the images with most errors."),
    ] = None,
) -> None:
    """Measure a model: COCO's mAP and mAP50, for each label.

    [bold]Examples[/bold]

      groundingml evaluate --data test.json --images photos/

      groundingml evaluate --data test.json --images photos/ --model llmdet-tiny --report report/

      groundingml evaluate --data test.json --images photos/ --model
      ~/.local/share/groundingml/versions/7/3-5f0c --json

    The model is asked as it is when serving: all labels at once, through the same code. mAP is the mean
    average precision over IoU 0.50 to 0.95, mAP50 that at 0.50; both lie in 0..1 and count every score, not a
    threshold. Wrong and missed boxes in the pictures are those at the model's thresholds.
    """
    from groundingml.inference import ImageError
    from groundingml.training import DatasetError, read_coco

    shown = Console(stderr=True)
    try:
        annotations = read_coco(data, images, "skip" if skip_bad_records else "refuse")
        asked = _labels(annotations.names, prompts)
    except DatasetError as error:
        _fail(f"{error}\nWith --skip-bad-records the rest is measured.", 1)
    except ValueError as error:
        _fail(str(error), 2)
    for problem in annotations.problems:
        shown.print(f"groundingml: left out {problem}", style="yellow", markup=False, highlight=False)
    if limit is not None:
        annotations = replace(annotations, records=annotations.records[:limit])

    from groundingml.cli.detect import load_detector

    detector = load_detector(model, device, shown, allow_cloud)
    from groundingml.learning.measuring import as_json as numbers
    from groundingml.learning.measuring import measure
    from groundingml.learning.report import write_report

    try:
        with LongRun("measuring", "images", shown) as progress:
            progress.begin(len(annotations.records))
            measurement = measure(detector, annotations, asked, on_image=lambda _: progress.advance())
        written = [] if report is None else write_report(measurement, detector.thresholds, report)
    except (ValueError, ImageError, ImportError) as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"the report cannot be written: {error}", 1)
    except KeyboardInterrupt:
        typer.echo("groundingml: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    if as_json:
        result = {"model": detector.name, "digest": detector.checkpoint_digest, "data": str(data)}
        typer.echo(json.dumps({**result, **numbers(measurement.evaluation)}, indent=2, ensure_ascii=False))
    else:
        _print_table(measurement)
    if report is not None:
        shown.print(f"{len(written)} files in {report}", markup=False, highlight=False)


def _labels(names: list[str], prompts: Path | None) -> list[Label]:
    from groundingml.inference import Label

    if prompts is None:
        return [Label(name) for name in names]
    given = read_labels(prompts)
    if not isinstance(given, dict):
        raise ValueError(f"{prompts} must be a .json object from label to prompts, not a list")
    if unknown := [name for name in given if name not in names]:
        raise ValueError(
            f"{prompts} has prompts for {', '.join(unknown)}, but the labels are {', '.join(names)}"
        )
    return [Label(name, given.get(name, ())) for name in names]


def _print_table(measurement: Measurement) -> None:
    evaluation = measurement.evaluation
    table = Table(title=f"{evaluation.images} images", caption="IoU 0.50:0.95 and 0.50; 0..1")
    table.add_column("label")
    for column in ("boxes", "mAP", "mAP50"):
        table.add_column(column, justify="right")
    by_boxes = sorted(evaluation.labels.items(), key=lambda item: -item[1].boxes)
    for name, score in by_boxes[:_MOST_ROWS]:
        table.add_row(name, str(score.boxes), f"{score.ap:.3f}", f"{score.ap50:.3f}")
    if len(by_boxes) > _MOST_ROWS:
        table.add_row(f"... and {len(by_boxes) - _MOST_ROWS} more (--json lists all)", "", "", "")
    table.add_section()
    boxes = sum(score.boxes for score in evaluation.labels.values())
    table.add_row(
        "mean over labels", str(boxes), f"{evaluation.map:.3f}", f"{evaluation.map50:.3f}", style="bold"
    )
    Console().print(table)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(code)
