"""Options that several commands have, so that they are named and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LabelStudioUrl = Annotated[
    str | None,
    typer.Option(
        envvar="LABEL_STUDIO_URL", show_envvar=True, help="Where Label Studio is: http://localhost:8080."
    ),
]
LabelStudioApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="LABEL_STUDIO_API_KEY",
        show_envvar=True,
        help="Access token (the environment keeps it out of the process list).",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="GROUNDINGML_MODEL",
        help="Short name, hub id, folder or file of the model; hf:ID or api:NAME for others' (see models).",
    ),
]
Device = Annotated[str, typer.Option(envvar="GROUNDINGML_DEVICE", help="auto, cpu, cuda or cuda:N.")]
AllowHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        envvar="GROUNDINGML_ALLOW_HOST",
        help="HOST or HOST:PORT with a private address that images may be read from; may be repeated.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="GROUNDINGML_DATA_DIR",
        show_envvar=True,
        file_okay=False,
        help="Folder for database, versions, runs and cached images (else ~/.local/share/groundingml).",
    ),
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="GROUNDINGML_STORE",
        show_envvar=True,
        help="Database instead of the data folder's SQLite file: postgresql://user:password@host/name.",
    ),
]
AllowCloud = Annotated[
    bool,
    typer.Option(
        "--allow-cloud",
        envvar="GROUNDINGML_ALLOW_CLOUD",
        show_envvar=True,
        help="Images may leave this machine: for models that a vendor runs, --model api:...",
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        envvar="GROUNDINGML_RECIPE", help="How to train: head, lora or full (see docs/training.md)."
    ),
]
Retention = Annotated[
    str | None,
    typer.Option(
        envvar="GROUNDINGML_RETENTION",
        metavar="ANNOTATIONS.json:FOLDER",
        help="What a trained model must still find, in COCO format (else some everyday photos).",
    ),
]
LeastGain = Annotated[
    float,
    typer.Option(
        envvar="GROUNDINGML_LEAST_GAIN",
        min=0,
        max=1,
        help="By so much mAP50 on held-out tasks a new version must be better to serve.",
    ),
]
MostForgotten = Annotated[
    float,
    typer.Option(
        envvar="GROUNDINGML_MOST_FORGOTTEN",
        min=0,
        max=1,
        help="Such a share of its mAP50 on the retention set a new version may lose and still serve.",
    ),
]
