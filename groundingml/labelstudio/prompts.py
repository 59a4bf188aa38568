"""What to ask the detector for one image: the project's labels, or what an annotator typed.

Both end in a :class:`Query`, which also knows under which control and label each answer is to be given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groundingml.labelstudio.config_options import NO_OPTIONS, Options, has_words
from groundingml.labelstudio.label_config import (
    ConfigImage,
    ConfigLabel,
    LabelConfig,
    PromptControl,
    RectangleControl,
)

MAX_PROMPT_CHARACTERS = 20_000
_PHRASE_END = re.compile(r"[.,;\r\n]+")


@dataclass(frozen=True)
class Target:
    """Where a detection goes: a control, and the label's name there, or None.

    ``threshold`` is the least score for it, None for the detector's own; ``phrase`` is what had been typed,
    when that is no label.
    """

    control: RectangleControl
    label: str | None
    threshold: float | None
    phrase: str | None = None


@dataclass(frozen=True)
class Wanted:
    """One thing to look for: all ``prompts`` mean it, ``negative_prompts`` do not, ``targets`` is where it is
    drawn."""

    name: str
    prompts: tuple[str, ...]
    targets: tuple[Target, ...]
    negative_prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """All that is wanted of one image."""

    image: ConfigImage
    wanted: tuple[Wanted, ...]
    options: Options = NO_OPTIONS


def query_for_labels(config: LabelConfig, image: ConfigImage, task_data: Mapping[str, Any]) -> Query:
    """Everything that the project's labels ask of ``image``. A name used by two controls is looked for once.

    Raises:
        LabelConfigError: when the task does not bring the labels that the config expects of it.
    """
    collected = _Collector()
    for control in config.controls_of(image):
        for label in control.labels_of(task_data):
            if label.is_searched:
                collected.add_label(control, label, label.prompts)
    return Query(image, collected.wanted(), config.options)


def query_for_text(
    config: LabelConfig, image: ConfigImage, phrases: Sequence[str], task_data: Mapping[str, Any]
) -> Query:
    """What typed phrases ask of ``image``.

    A phrase that is a label's name (or alias) asks for that label, with all its prompts. A phrase that is one
    of a label's prompts gives that label too, but is looked for as typed. Any other phrase is looked for as
    typed and gives boxes with the `unmatched` label of the image's first control that has one, else without a
    label on the image's first control.

    Raises:
        LabelConfigError: when the task does not bring the labels that the config expects of it.
    """
    controls = config.controls_of(image)
    known = [(control, label) for control in controls for label in control.labels_of(task_data)]
    other = next((control for control in controls if control.unmatched is not None), controls[0])
    collected = _Collector()
    for phrase in phrases:
        matches = [(control, label) for control, label in known if _names(phrase, label)]
        for control, label in matches:
            by_name = _folded(phrase) in (_folded(label.name), _folded(label.value))
            collected.add_label(control, label, label.prompts if by_name and label.is_searched else (phrase,))
        if not matches:
            collected.add_phrase(other, phrase)
    return Query(image, collected.wanted(), config.options)


def split_phrases(text: str) -> list[str]:
    """``"cat . remote control"`` -> ``["cat", "remote control"]``: parts between ``. , ;`` and line ends,
    each once.

    Parts without a letter or digit are left out: there is nothing to look for.
    """
    parts = (" ".join(part.split()) for part in _PHRASE_END.split(text[:MAX_PROMPT_CHARACTERS]))
    by_folded: dict[str, str] = {}
    for part in parts:
        if has_words(part):
            by_folded.setdefault(_folded(part), part)
    return list(by_folded.values())


def newest_prompt(config: LabelConfig, context_result: Any) -> tuple[PromptControl, str] | None:
    """The text typed last into one of the config's smart text areas, out of a request's
    ``context.result``."""
    if not isinstance(context_result, list):
        return None
    controls = {prompt.name: prompt for prompt in config.prompts}
    for region in reversed(context_result):
        if not isinstance(region, dict) or region.get("type") != "textarea":
            continue
        control = controls.get(str(region.get("from_name")))
        value = region.get("value")
        texts = value.get("text") if isinstance(value, dict) else None
        if isinstance(texts, str):
            texts = [texts]
        if control is not None and isinstance(texts, list):
            typed = [text for text in texts if isinstance(text, str) and text.strip()]
            if typed:
                return control, typed[-1]
    return None


class _Collector:
    """Gathers wanted things by name, in order, joining the prompts and targets of equal names."""

    def __init__(self) -> None:
        self._prompts: dict[str, dict[str, None]] = {}
        self._negatives: dict[str, dict[str, None]] = {}
        self._targets: dict[str, dict[Target, None]] = {}

    def add_label(self, control: RectangleControl, label: ConfigLabel, prompts: Sequence[str]) -> None:
        threshold = control.threshold if label.threshold is None else label.threshold
        negatives = control.negative_prompts + label.negative_prompts
        self._add(label.name, prompts, negatives, Target(control, label.name, threshold))

    def add_phrase(self, control: RectangleControl, phrase: str) -> None:
        target = Target(control, control.unmatched, control.threshold, phrase)
        self._add(phrase, (phrase,), control.negative_prompts, target)

    def _add(self, name: str, prompts: Sequence[str], negatives: Sequence[str], target: Target) -> None:
        self._prompts.setdefault(name, {}).update(dict.fromkeys(prompts))
        self._negatives.setdefault(name, {}).update(dict.fromkeys(negatives))
        self._targets.setdefault(name, {})[target] = None

    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(
            Wanted(name, tuple(prompts), tuple(self._targets[name]), tuple(self._negatives[name]))
            for name, prompts in self._prompts.items()
        )


def _names(phrase: str, label: ConfigLabel) -> bool:
    return _folded(phrase) in {
        _folded(text) for text in (label.name, label.value, *label.prompts, *label.aliases)
    }


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
