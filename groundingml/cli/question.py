"""What a command is asked to look for, from its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_EXAMPLE = '--labels "cat, remote control"'


def read_question(labels: str | None, caption: str | None, labels_file: Path | None) -> dict[str, Any]:
    """The keyword argument for the detector: ``labels`` or ``caption``.

    Raises:
        ValueError: not exactly one is given, it names nothing, or the file cannot be read.
    """
    if sum(given is not None for given in (labels, caption, labels_file)) != 1:
        raise ValueError(
            f"say what to look for with one of --labels, --caption and --labels-file, for example {_EXAMPLE}"
        )
    if caption is not None:
        return {"caption": caption}
    if labels is not None:
        return {"labels": split_labels(labels)}
    assert labels_file is not None
    return {"labels": read_labels(labels_file)}


def split_labels(text: str) -> list[str]:
    """Names separated by commas, or by dots between spaces as in Grounding DINO's prompts ("cat . dog .")."""
    parts = [part for piece in text.split(",") for part in f"{piece} ".split(" . ")]
    names = [part.strip() for part in parts]
    names = [name for name in names if name.strip(" .")]
    if not names:
        raise ValueError(f"--labels names nothing; for example {_EXAMPLE}")
    return names


def read_labels(file: Path) -> list[str] | dict[str, Any]:
    """Labels from a text file, one on a line, or from a JSON file: a list, or an object from label to
    prompts.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the labels file {file} cannot be read: {error}") from error
    if file.suffix.lower() == ".json":
        return _from_json(text, file)
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"the labels file {file} has no labels; write one on each line")
    return names


def _from_json(text: str, file: Path) -> list[str] | dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the labels file {file} is not JSON: {error}") from error
    if _is_names(value):
        return list(value)
    if isinstance(value, dict) and all(isinstance(p, str) or _is_names(p) for p in value.values()):
        return value
    example = '{"pet": ["cat", "dog"]}'
    raise ValueError(f"the labels file {file} must hold a list of names or an object such as {example}")


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
