"""`groundingml train`: annotated images, or what people corrected in a project, teach a model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from groundingml.cli.options import (
    AllowHosts,
    DataDir,
    Device,
    LabelStudioApiKey,
    LabelStudioUrl,
    LeastGain,
    Model,
    MostForgotten,
    Retention,
    StoreUrl,
)


class Recipe(str, Enum):
    """How to train; see `groundingml.training.recipes`."""

    HEAD = "head"
    LORA = "lora"
    FULL = "full"


class Kind(str, Enum):
    """What annotations are written in."""

    AUTO = "auto"
    COCO = "coco"
    YOLO = "yolo"
    VOC = "voc"
    LABEL_STUDIO = "label-studio"


class BadRecords(str, Enum):
    """What to do about records that cannot be used."""

    REFUSE = "refuse"
    SKIP = "skip"


def train(
    project: Annotated[
        str | None,
        typer.Option("--project", "-p", help="Label Studio project, by id: what people corrected there."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Annotations: a COCO or Label Studio .json, a YOLO data.yaml, or a folder of YOLO .txt or "
            "VOC .xml files.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, where the annotations do not say it.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new model.")] = Path(
        "trained"
    ),
    model: Model = "nano",
    recipe: Annotated[
        Recipe,
        typer.Option(
            help="head: the encoders are frozen. lora: adapters learn, merged in at the end. full: all "
            "learns, and what is not replayed is forgotten."
        ),
    ] = Recipe.LORA,
    val: Annotated[
        str | None,
        typer.Option(
            help="Annotations to measure on, or the share of the images to hold out for it, such as 0.2; the "
            "best weights measured are kept."
        ),
    ] = None,
    val_images: Annotated[Path | None, typer.Option(help="Folder of their images, if not --images.")] = None,
    kind: Annotated[Kind, typer.Option("--format", help="Of the annotations.")] = Kind.AUTO,
    bad_records: Annotated[
        BadRecords, typer.Option(help="Stop at records that cannot be used, or leave them out.")
    ] = BadRecords.REFUSE,
    prompts: Annotated[
        Path | None,
        typer.Option(help='What to ask for a label: a .json object such as {"RBC": "red blood cell"}.'),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Folder of general photos, without annotations: what the model finds there before training "
            "it is to find afterwards."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps, about; by default the recipe's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Exactly so many epochs instead.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in one forward pass of a process.")
    ] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Forward passes that make one step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="By default the recipe's.")] = None,
    precision: Annotated[
        str, typer.Option(help="auto (bfloat16 or float16 on a GPU), float32, bfloat16 or float16.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare images.")] = 0,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that was interrupted in --output.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that --output holds.")
    ] = False,
    retention: Retention = None,
    least_gain: LeastGain = 0.01,
    most_forgotten: MostForgotten = 0.2,
    promote: Annotated[
        bool,
        typer.Option(help="With --project: let a better version serve; else it waits as a candidate."),
    ] = True,
    threads: Annotated[
        int | None, typer.Option(min=1, help="With --project: threads; by default all cores but one.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="With --project: print the run's number and come back at once.")
    ] = False,
    label_studio_url: LabelStudioUrl = None,
    label_studio_api_key: LabelStudioApiKey = None,
    allow_host: AllowHosts = None,
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """Fine-tune a model on annotated images, or on what people corrected in a Label Studio project.

    [bold]Examples[/bold]

      groundingml train --project 7

      groundingml train --data coco.json --images photos/ --val 0.2 --output cells

      groundingml train --data data.yaml --val data.yaml --model llmdet-tiny --device cuda

      groundingml train --data Annotations/ --images JPEGImages/ --bad-records skip

      groundingml train --data export.json --images upload/7 --recipe head --steps 300

      torchrun --nproc-per-node 2 -m groundingml.cli train --data coco.json --images photos/

    The new model is a folder: groundingml detect photo.jpg --labels "..." --model trained. Ctrl-C writes a
    checkpoint, and the same command with --resume goes on. Images without boxes are used too: they show what
    is not there.

    With --project a fifth of the corrected tasks is held out, chosen by a hash and never trained on. On these
    the new
    version is compared with the one that serves: it takes over only if it finds more, and has forgotten
    little of the retention set. The run goes on from its last checkpoint with the same command; see also
    groundingml runs and groundingml versions.
    """
    if (data is None) == (project is None):
        _fail("say what to learn from: --project 7, or --data coco.json --images photos/", 2)
    from groundingml.cli.file_training import FileTraining, train_files
    from groundingml.cli.project_training import ProjectTraining, train_project

    chosen = {
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "precision": precision,
        "seed": seed,
    }
    options = {name: value for name, value in chosen.items() if value is not None}
    if project is not None:
        train_project(
            ProjectTraining(
                project=project,
                recipe=recipe.value,
                model=model,
                device=device,
                data_dir=data_dir,
                store_url=store,
                label_studio_url=label_studio_url or None,
                label_studio_api_key=label_studio_api_key or None,
                allow_hosts=tuple(allow_host or ()),
                retention=retention,
                least_gain=least_gain,
                most_forgotten=most_forgotten,
                promote=promote,
                threads=threads,
                detach=detach,
                recipe_options=options,
            )
        )
        return
    assert data is not None
    train_files(
        FileTraining(
            data=data,
            images=images,
            output=output,
            kind=kind.value,
            bad_records=bad_records.value,
            recipe=recipe.value,
            model=model,
            device=device,
            validation=val,
            validation_images=val_images,
            replay=replay,
            prompts=prompts,
            workers=workers,
            resume=resume,
            overwrite=overwrite,
            options=options,
        )
    )


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(code)
