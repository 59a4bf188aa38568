"""`groundingml train --data`: fine-tuning on annotated files, without any server."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console

from groundingml.cli.files import find_images
from groundingml.cli.question import read_labels
from groundingml.cli.training_progress import TrainingProgress

if TYPE_CHECKING:
    from groundingml.training import Annotations, TrainingResult

_INTERRUPTED = 130  # the exit status that shells give a command ended by Ctrl-C
_CHECKPOINTS = "checkpoints"
_SHOWN = 20


@dataclass(frozen=True)
class FileTraining:
    """What the command was told; see its options. options: fields of the recipe that differ."""

    data: Path
    images: Path | None
    output: Path
    kind: str
    bad_records: str
    recipe: str
    model: str
    device: str
    validation: str | None = None
    validation_images: Path | None = None
    replay: Path | None = None
    prompts: Path | None = None
    workers: int = 0
    resume: bool = False
    overwrite: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def train_files(told: FileTraining) -> None:
    """Train, show how it goes, and say what to do with the result; ends the command when it cannot."""
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    shown = Console(stderr=True, quiet=not is_first)
    _check_output(told)
    from groundingml.training import CheckpointError, DatasetError, train_from_dataset

    progress = TrainingProgress(shown)
    try:
        examples, validation = _read(told, shown)
        synonyms = _prompts(examples.names, told.prompts)
        with progress:
            result = train_from_dataset(
                examples,
                told.output,
                told.recipe,
                told.model,
                options=told.options,
                validation=validation,
                replay=None if told.replay is None else find_images([str(told.replay)]),
                synonyms=synonyms,
                device=told.device,
                workers=told.workers,
                callbacks=progress.callbacks(),
                resume=told.resume,
            )
    except DatasetError as error:
        _fail(f"{error}\nWith --bad-records skip the rest is used.", 1)
    except CheckpointError as error:
        _fail(str(error), 1)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _say_how_to_resume(told)
    if not result.finished:
        _say_how_to_resume(told, result.steps)
    if is_first:
        _say_what_now(told, examples, result)


def _read(told: FileTraining, shown: Console) -> tuple[Annotations, Annotations | None]:
    """What to learn from, and what to measure on."""
    examples = _annotations(told.data, told.images, told, "train")
    _say_left_out(examples, shown)
    validation = None
    if told.validation is not None and (share := _share(told.validation)) is not None:
        examples, validation = _split(examples, share)
    elif told.validation is not None:
        images = told.validation_images or told.images
        validation = _annotations(Path(told.validation), images, told, "val")
        _say_left_out(validation, shown)
    if validation is not None:
        if not any(record.boxes_xyxy for record in validation.records):
            raise ValueError("none of the validation images has a box: there is nothing to measure")
        trained_on = {record.path.resolve() for record in examples.records}
        both = [record.path for record in validation.records if record.path.resolve() in trained_on]
        if both:
            raise ValueError(f"{len(both)} validation images are trained on too, {both[0]} for one")
    boxes = sum(len(record.boxes_xyxy) for record in examples.records)
    measured = "" if validation is None else f", {len(validation.records)} to measure on"
    shown.print(
        f"{len(examples.records)} images with {boxes} boxes of {len(examples.names)} names{measured}",
        highlight=False,
    )
    return examples, validation


def _annotations(data: Path, images: Path | None, told: FileTraining, split: str) -> Annotations:
    from groundingml.training import read_annotations

    skip = told.bad_records == "skip"
    return read_annotations(
        data, images, told.kind, "skip" if skip else "refuse", decode_images=True, split=split
    )


def _share(text: str) -> float | None:
    """The number that --val is, or None where it names a file."""
    try:
        share = float(text)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise ValueError(f"--val {text}: a share of the images lies between 0 and 1, such as 0.2")
    return share


def _split(examples: Annotations, share: float) -> tuple[Annotations, Annotations]:
    """Images to train on and to measure on, chosen by a hash of their names: the same in every run."""
    held_out = [
        zlib.crc32(f"held out {record.image_id}".encode()) / 2**32 < share for record in examples.records
    ]
    parts = [
        [record for record, held in zip(examples.records, held_out, strict=True) if held is wanted]
        for wanted in (False, True)
    ]
    if not all(parts):
        raise ValueError(f"{len(examples.records)} images are too few to hold out {share:g} of them")
    return replace(examples, records=parts[0]), replace(examples, records=parts[1])


def _prompts(names: Sequence[str], file: Path | None) -> Mapping[str, Sequence[str]] | None:
    if file is None:
        return None
    given = read_labels(file)
    if not isinstance(given, dict):
        raise ValueError(f"{file} must be a .json object from label to prompts, not a list")
    if unknown := [name for name in given if name not in names]:
        raise ValueError(
            f"{file} has prompts for {', '.join(unknown)}, but the labels are {', '.join(names)}"
        )
    return {name: (text,) if isinstance(text, str) else tuple(text) for name, text in given.items()}


def _check_output(told: FileTraining) -> None:
    unfinished = (told.output / _CHECKPOINTS / "last.pt").is_file()
    if told.output.exists() and not told.output.is_dir():
        _fail(f"--output {told.output} is a file; name a folder", 2)
    if unfinished and not (told.resume or told.overwrite):
        _fail(
            f"{told.output} holds a run that was interrupted: --resume goes on with it, "
            "--overwrite begins anew",
            2,
        )
    if (told.output / "config.json").is_file() and not (told.overwrite or (told.resume and unfinished)):
        _fail(f"{told.output} holds a model already: name another --output, or --overwrite", 2)


def _say_left_out(annotations: Annotations, shown: Console) -> None:
    for problem in annotations.problems[:_SHOWN]:
        shown.print(f"groundingml: left out {problem}", style="yellow", markup=False, highlight=False)
    if len(annotations.problems) > _SHOWN:
        shown.print(f"groundingml: ... and {len(annotations.problems) - _SHOWN} more", style="yellow")


def _say_how_to_resume(told: FileTraining, steps: int | None = None) -> NoReturn:
    if (told.output / _CHECKPOINTS / "last.pt").is_file():
        at = "" if steps is None else f" after step {steps}"
        typer.echo(f"groundingml: stopped{at}; the same command with --resume goes on from there", err=True)
    else:
        typer.echo("groundingml: interrupted before there was anything to save", err=True)
    raise typer.Exit(_INTERRUPTED)


def _say_what_now(told: FileTraining, examples: Annotations, result: TrainingResult) -> None:
    labels = ", ".join(examples.names[:3])
    typer.echo(f"{told.output}")
    told_err = [f"{result.steps} steps in {result.seconds:.0f} s; the new version is in {told.output}"]
    told_err.append(f'  groundingml detect photo.jpg --labels "{labels}" --model {told.output}')
    if not (told.output / "preprocessor_config.json").is_file():
        told_err.append("It is a model of groundingml's own kind, which transformers has no class for.")
    typer.echo("\n".join(told_err), err=True)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(code)
