"""`groundingml detect`: boxes on photos."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from groundingml.cli.files import DrawnNames, find_images
from groundingml.cli.options import AllowCloud, Device, Model
from groundingml.cli.question import read_question

if TYPE_CHECKING:
    from PIL import Image

    from groundingml.inference import BulkResult, Detections, ObjectDetector, Tiling

_MOST_ROWS = 200  # of the table; --json lists everything
_INTERRUPTED = 130  # the exit status that shells give a command ended by Ctrl-C


def detect(
    images: Annotated[
        list[str],
        typer.Argument(help="Photos, folders (with all below them) or patterns such as 'in/*.jpg'."),
    ],
    labels: Annotated[
        str | None,
        typer.Option("--labels", "-l", help="What to look for, separated by commas (or ' . ')."),
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option("--caption", "-c", help="An English sentence; the things it names are looked for."),
    ] = None,
    labels_file: Annotated[
        Path | None,
        typer.Option(
            help="Labels, one on a line; or a .json file: a list, or an object from label to prompts."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", "-t", min=0, max=1, help="Least score; by default the model's."),
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE[:OVERLAP]",
            help="Look at each photo in tiles of so many pixels too, for what is small in large photos.",
        ),
    ] = None,
    model: Model = "nano",
    device: Device = "auto",
    allow_cloud: AllowCloud = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File or folder for the pictures; by default NAME.detected.jpg in this folder.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else; pictures only with --output.")
    ] = False,
    workers: Annotated[
        str,
        typer.Option(
            envvar="GROUNDINGML_WORKERS",
            help="Processes for many photos: auto is one for each core once that pays; 1 is none but this.",
        ),
    ] = "auto",
) -> None:
    """Find things on photos: print a table and save pictures with boxes.

    [bold]Examples[/bold]

      groundingml detect photo.jpg --labels "cat, remote control"

      groundingml detect photo.jpg --caption "a woman holds a blow dryer, wearing protective goggles"

      groundingml detect photos/ 'more/**/*.png' --labels-file labels.txt --threshold 0.4 --output drawn/

      groundingml detect photos/ --labels person --json | jq '.images[].detections'

      groundingml detect photo.jpg --labels "traffic cone" --model grounding-dino-tiny

      groundingml detect aerial.tif --labels car --tile 1024

    An image that cannot be read does not stop the others; it is reported at the end, and the exit status is
    1.
    """
    try:
        question = read_question(labels, caption, labels_file)
        arguments: dict[str, Any] = {"threshold": threshold, "tile": _read_tiling(tile)}
        crew = read_workers(workers)
    except ValueError as error:
        _fail(str(error), 2)
    files = find_images(images)
    if not files:
        _fail(f"no images found in {', '.join(images)}", 2)
    if not any(file.exists() for file in files):
        _fail(f"no such file: {', '.join(str(file) for file in files[:5])}", 1)
    try:
        names = DrawnNames(output, single=len(files) == 1)
    except ValueError as error:
        _fail(str(error), 2)

    shown = Console(stderr=True)
    detector = load_detector(model, device, shown, allow_cloud)
    from groundingml.inference import detect_many

    try:
        detector.plan(**question)
    except ValueError as error:
        _fail(str(error), 2)
    draws = output is not None or not as_json
    found = detect_many(model, files, **question, **arguments, workers=crew, detector=detector)
    run = _run(found, files, names if draws else None, shown)
    if as_json:
        typer.echo(json.dumps(_report(run, detector, question, arguments), indent=2, ensure_ascii=False))
    else:
        _print_table(run, several=len(files) > 1)
    for file, reason in run.errors:
        shown.print(
            f"groundingml: {file}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    if run.errors:
        typer.echo(f"groundingml: {len(run.errors)} of {len(files)} images failed", err=True)
    if run.interrupted:
        typer.echo(f"groundingml: interrupted after {len(run.results)} of {len(files)} images", err=True)
        raise typer.Exit(_INTERRUPTED)
    if run.stopped is not None:
        typer.echo(f"groundingml: stopped after {len(run.results)} of {len(files)} images", err=True)
        typer.echo(f"groundingml: {run.stopped}", err=True)
    if run.errors or run.stopped is not None:
        raise typer.Exit(1)


@dataclass
class _Run:
    results: list[tuple[Path, Detections, Path | None]] = field(default_factory=list)  # image, found, picture
    errors: list[tuple[Path, str]] = field(default_factory=list)
    interrupted: bool = False
    stopped: str | None = None
    """Why the run could not go on, when it could not."""


def _run(
    found: Generator[BulkResult, None, None], files: list[Path], names: DrawnNames | None, shown: Console
) -> _Run:
    from groundingml.inference import RunStopped

    run = _Run()
    try:
        for result in _with_progress(found, len(files), shown):
            _take(result, files[result.number], names, run)
    except KeyboardInterrupt:
        run.interrupted = True
    except (RunStopped, OSError) as error:  # a worker died or could not be started, a service refuses
        run.stopped = str(error)
    finally:
        found.close()
    return run


def _take(result: BulkResult, file: Path, names: DrawnNames | None, run: _Run) -> None:
    from groundingml.inference import ImageError

    if isinstance(result.found, ImageError):
        run.errors.append((file, result.found.reason))
        return
    try:
        picture = None if names is None else names.name_for(file)
        if picture is not None:
            _save(result.found.draw(file if result.image is None else result.image), picture)
    except ImageError as error:  # gone or overwritten since a worker read it
        run.errors.append((file, error.reason))
    except OSError as error:
        run.errors.append((file, f"the picture cannot be saved: {error}"))
    except MemoryError as error:
        run.errors.append((file, f"{type(error).__name__}: {error}"))
    else:
        run.results.append((file, result.found, picture))


def _with_progress(
    found: Generator[BulkResult, None, None], count: int, shown: Console
) -> Iterable[BulkResult]:
    if count == 1 or not shown.is_terminal:
        return found
    return track(found, total=count, description="Detecting", console=shown, transient=True)


def read_workers(text: str) -> int | Literal["auto"]:
    """The value of --workers.

    Raises:
        ValueError: neither "auto" nor a number from 1 on.
    """
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--workers must be auto or a number from 1 on, got {text!r}")
    return int(text)


def _save(picture: Image.Image, target: Path) -> None:
    """Write the whole file or none: an interrupted run leaves no half picture."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".groundingml-", suffix=target.suffix, dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            picture.save(stream, _format_of(target), quality=92)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _format_of(target: Path) -> str:
    from PIL import Image

    return Image.registered_extensions().get(target.suffix.lower(), "JPEG")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_detector(model: str, device: str, shown: Console, allow_cloud: bool = False) -> ObjectDetector:
    """Load the model a command was asked for, or end the command saying why it cannot."""
    status = shown.status(f"Loading {model} ...") if shown.is_terminal else nullcontext()
    try:
        with status:
            from groundingml import inference

            return inference.load_detector(model, device, allow_cloud=allow_cloud)
    except (ValueError, OSError) as error:  # CheckpointError and an unknown device are ValueErrors
        _fail(str(error), 1)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


def _read_tiling(tile: str | None) -> Tiling | None:
    if tile is None:
        return None
    from groundingml.inference import Tiling

    return Tiling.parse(tile)


def _report(
    run: _Run, detector: ObjectDetector, question: dict[str, Any], arguments: dict[str, Any]
) -> dict[str, Any]:
    threshold, tiling = arguments["threshold"], arguments["tile"]
    return {
        "model": detector.name,
        "checkpoint": detector.checkpoint_digest,
        "threshold": detector.default_threshold if threshold is None else threshold,
        "tile": None if tiling is None else {"size": tiling.size, "overlap": tiling.overlap},
        **question,
        "images": [
            {"file": str(file), **found.to_dict(), "picture": None if picture is None else str(picture)}
            for file, found, picture in run.results
        ],
        "errors": [{"file": str(file), "error": reason} for file, reason in run.errors],
        "interrupted": run.interrupted,
        "stopped": run.stopped,
    }


def _print_table(run: _Run, several: bool) -> None:
    console = Console()
    rows = [
        (str(file), label, f"{score:.2f}", " ".join(f"{value:.0f}" for value in box))
        for file, found, _ in run.results
        for label, score, box in zip(found.labels, found.scores, found.boxes_xyxy, strict=True)
    ]
    table = Table()
    if several:
        table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("score", justify="right")
    table.add_column("box (left top right bottom)", no_wrap=True)
    for row in rows[:_MOST_ROWS]:
        table.add_row(*(_plain(cell) for cell in (row if several else row[1:])))
    if rows:
        console.print(table)
    elif run.results:
        console.print("Nothing found; a lower --threshold shows weaker boxes.")
    if len(rows) > _MOST_ROWS:
        console.print(f"... and {len(rows) - _MOST_ROWS} more; --json lists all.")
    pictures = [picture for _, _, picture in run.results if picture is not None]
    if len(pictures) == 1:
        console.print(f"Boxes drawn in {pictures[0]}", markup=False, highlight=False, soft_wrap=True)
    elif pictures:
        folder = pictures[0].parent.absolute()
        console.print(f"Boxes drawn in {len(pictures)} pictures in {folder}", markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Brackets in names and labels are no markup."""
    return text.replace("[", r"\[")


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(status)
