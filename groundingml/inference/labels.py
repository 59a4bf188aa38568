"""What a user asks for: labels, each with the prompts that describe it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Label:
    """A name to return, the prompts to look for it by, and its own score threshold.

    Args:
        name: what a detection is called, returned exactly as written here.
        prompts: what the network is asked for; the name itself when empty. Several prompts are aliases: the
            best counts.
        threshold: replaces the detector's threshold for this label.
        negative_prompts: what it is *not*, though it looks similar: where one of these fits a place better,
            the label's box is dropped.
    """

    name: str
    prompts: tuple[str, ...] = ()
    threshold: float | None = None
    negative_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", _as_tuple(self.prompts))
        object.__setattr__(self, "negative_prompts", _as_tuple(self.negative_prompts))
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"label {self.name!r}: the threshold must lie in 0..1, got {self.threshold}")

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts to ask the network for."""
        return self.prompts or (self.name,)


def _as_tuple(prompts: str | Iterable[str]) -> tuple[str, ...]:
    return (
        (prompts,) if isinstance(prompts, str) else tuple(prompts)
    )  # "cat" is one prompt, not three letters


Labels: TypeAlias = "Sequence[str | Label] | Mapping[str, str | Sequence[str]]"


def normalise_labels(labels: Labels) -> list[Label]:
    """Labels in the order asked for, each name once; a name given twice unites its prompts.

    Names are compared exactly: "Cat" and "cat" are two labels (which the uncased vocabulary will score
        alike).

    Raises:
        ValueError: no labels, or a label without a letter or digit to look for.
    """
    if isinstance(labels, str):
        raise ValueError(
            f"labels must be a list of names, got the string {labels!r}. "
            f"For one label: labels=[{labels!r}]; for a sentence: caption={labels!r}"
        )
    if isinstance(labels, Mapping):
        listed: Iterable[str | Label] = [
            Label(name, (prompts,) if isinstance(prompts, str) else tuple(prompts))
            for name, prompts in labels.items()
        ]
    else:
        listed = labels
    united: dict[str, Label] = {}
    for entry in listed:
        if not isinstance(entry, str | Label):
            raise ValueError(f"a label is a string or a Label, got {entry!r}")
        label = entry if isinstance(entry, Label) else Label(entry)
        known = united.get(label.name)
        if known is None:
            united[label.name] = label
            continue
        threshold = label.threshold if known.threshold is None else known.threshold
        texts = tuple(dict.fromkeys(known.texts + label.texts))
        negatives = tuple(dict.fromkeys(known.negative_prompts + label.negative_prompts))
        united[label.name] = Label(label.name, texts, threshold, negatives)
    if not united:
        raise ValueError("no labels: give at least one name, e.g. labels=['cat'], or a caption")
    for label in united.values():
        for text in label.texts + label.negative_prompts:
            if not any(character.isalnum() or not character.isascii() for character in text):
                raise ValueError(f"label {label.name!r}: there is nothing to look for in the prompt {text!r}")
    return list(united.values())


def prompt_digest(labels: Labels, threshold: float | None, **options: object) -> str:
    """12 hex digits that change when what is asked for changes: names, their order, prompts, thresholds,
    options.

    The same question gives the same digits in every process and release, so it can be part of a version
    string. ``options`` must be JSON values.
    """
    asked = normalise_labels(labels)
    negatives = {label.name: list(label.negative_prompts) for label in asked if label.negative_prompts}
    if negatives:
        options = {**options, "negative_prompts": negatives}
    question = {
        "labels": [[label.name, list(label.texts), label.threshold] for label in asked],
        "threshold": threshold,
        "options": options,
    }
    text = json.dumps(question, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
