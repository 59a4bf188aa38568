"""`groundingml models compare`: what several models find on the same photos, in one picture."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from groundingml.cli.files import find_images
from groundingml.cli.options import AllowCloud, Device
from groundingml.cli.question import read_question

if TYPE_CHECKING:
    from groundingml.inference.comparison import Column

MOST_PHOTOS = 12


def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Two or more, as --model takes them.")
    ],
    images: Annotated[
        list[str], typer.Option("--images", "-i", help="Photo, folder or pattern; may be repeated.")
    ],
    labels: Annotated[str | None, typer.Option("--labels", "-l", help="What to look for, by commas.")] = None,
    caption: Annotated[
        str | None, typer.Option("--caption", "-c", help="A sentence; the things it names are looked for.")
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="Labels, one on a line, or a .json file.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", "-t", min=0, max=1, help="Least score; by default each model's."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture.")] = Path("comparison.jpg"),
    device: Device = "auto",
    allow_cloud: AllowCloud = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Show the boxes of several models side by side in one picture, with their number and time.

    [bold]Examples[/bold]

      groundingml models compare nano llmdet-tiny --images photo.jpg --labels "cat, remote control"

      groundingml models compare llmdet-tiny hf:google/owlv2-base-patch16-ensemble -i photos/ -l person

    At most 12 photos, one below the other. A model's first photo is computed twice, so that its time is not
    that of warming up.
    """
    try:
        question = read_question(labels, caption, labels_file)
    except ValueError as error:
        _fail(str(error), 2)
    if len(models) < 2:
        _fail("name at least two models", 2)
    files = find_images(images)
    if not files:
        _fail(f"no images found in {', '.join(images)}", 2)
    shown = Console(stderr=True)
    if len(files) > MOST_PHOTOS:
        typer.echo(f"groundingml: the first {MOST_PHOTOS} of {len(files)} photos are compared", err=True)
        files = files[:MOST_PHOTOS]
    from groundingml.inference import ImageError, load_image
    from groundingml.inference.comparison import draw_comparison

    try:
        photos = [load_image(file) for file in files]
        columns = [
            _column(model, photos, question, threshold, device, allow_cloud, shown) for model in models
        ]
        output.parent.mkdir(parents=True, exist_ok=True)
        draw_comparison(photos, columns).save(output, quality=92)
    except (ImageError, ValueError, OSError, RuntimeError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        typer.echo("groundingml: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(_report(files, columns, output), indent=2, ensure_ascii=False))
        return
    table = Table("model", "boxes", "seconds a photo")
    for column in columns:
        boxes = sum(len(found) for found in column.found)
        table.add_row(column.name, str(boxes), f"{sum(column.seconds) / len(files):.2f}")
    Console().print(table)
    typer.echo(f"Side by side in {output}")


def _column(
    model: str,
    photos: list[Any],
    question: dict[str, Any],
    threshold: float | None,
    device: str,
    allow_cloud: bool,
    shown: Console,
) -> Column:
    from groundingml.cli.detect import load_detector
    from groundingml.inference.comparison import Column
    from groundingml.inference.loading import runs_elsewhere

    detector = load_detector(model, device, shown, allow_cloud)
    detector.plan(**question)
    if not runs_elsewhere(model):
        detector(photos[0], threshold=threshold, **question)
    column = Column(detector.name, [], [])
    for photo in photos:
        began = time.perf_counter()
        column.found.append(detector(photo, threshold=threshold, **question))
        column.seconds.append(time.perf_counter() - began)
    return column


def _report(files: list[Path], columns: list[Column], output: Path) -> dict[str, Any]:
    return {
        "picture": str(output),
        "models": [
            {
                "model": column.name,
                "images": [
                    {"file": str(file), "seconds": round(seconds, 4), **found.to_dict()}
                    for file, found, seconds in zip(files, column.found, column.seconds, strict=True)
                ],
            }
            for column in columns
        ],
    }


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(status)
