"""What to ask the detector for one image: the project's labels, or what an annotator typed.

Both end in a :class:`Query`, which also knows under which control and label each answer is to be given.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from groundingml.inference import extract_phrases
from groundingml.labelstudio.config_options import NO_OPTIONS, Options, has_words
from groundingml.labelstudio.editor_actions import DrawnRectangle
from groundingml.labelstudio.label_config import (
    ConfigImage,
    ConfigLabel,
    LabelConfig,
    RectangleControl,
)

MAX_PROMPT_CHARACTERS = 20_000
_PART_END = re.compile(r"[.;\r\n]+")
_SENTENCE_STARTS = frozenset(("a", "an", "the", "this", "that", "these", "those", "there"))
_SENTENCE_STARTS |= frozenset(("some", "several", "many", "both", "two", "three", "four", "five", "six"))
_SENTENCE_VERBS = frozenset(("is", "are", "was", "were", "has", "have"))


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


def query_for_labels(
    config: LabelConfig,
    image: ConfigImage,
    task_data: Mapping[str, Any],
    prompts: Mapping[str, str] = MappingProxyType({}),
) -> Query:
    """Everything that the project's labels ask of ``image``. A name used by two controls is looked for once.

    Args:
        prompts: name of a prompt control -> remembered text, whose phrases are looked for as well.

    Raises:
        LabelConfigError: when the task does not bring the labels that the config expects of it.
    """
    collected = _Collector()
    for control in config.controls_of(image):
        for label in control.labels_of(task_data):
            if label.is_searched:
                collected.add_label(control, label, label.prompts)
    for prompt in config.prompts:
        if prompt.image == image and prompt.name in prompts:
            _collect_text(collected, config, image, prompts[prompt.name], task_data)
    return Query(image, collected.wanted(), config.options)


def query_for_drawn(config: LabelConfig, drawn: DrawnRectangle, task_data: Mapping[str, Any]) -> Query:
    """What a drawn rectangle asks for inside it: its labels; all of its controls when it has none.

    Raises:
        LabelConfigError: when the task does not bring the labels that the config expects of it.
    """
    collected = _Collector()
    for control in drawn.controls:
        for label in control.labels_of(task_data):
            named = label.name in drawn.labels or label.value in drawn.labels
            if named or (not drawn.labels and label.is_searched):
                collected.add_label(control, label, label.prompts)
    return Query(drawn.image, collected.wanted(), config.options)


def query_for_text(config: LabelConfig, image: ConfigImage, text: str, task_data: Mapping[str, Any]) -> Query:
    """What the phrases of a typed text ask of ``image`` (see `split_phrases`).

    A phrase that is a label's name (or alias) asks for that label, with all its prompts. A phrase that is one
    of a label's prompts gives that label too, but is looked for as typed. Any other phrase is looked for as
    typed and gives boxes with the `unmatched` label of the image's first control that has one, else without a
    label on the image's first control.

    Raises:
        LabelConfigError: when the task does not bring the labels that the config expects of it.
    """
    collected = _Collector()
    _collect_text(collected, config, image, text, task_data)
    return Query(image, collected.wanted(), config.options)


def _collect_text(
    collected: _Collector, config: LabelConfig, image: ConfigImage, text: str, task_data: Mapping[str, Any]
) -> None:
    controls = config.controls_of(image)
    known = [(control, label) for control in controls for label in control.labels_of(task_data)]
    other = next((control for control in controls if control.unmatched is not None), controls[0])
    names = [name for _, label in known for name in _names(label)]
    for phrase in split_phrases(text, names):
        matches = [(control, label) for control, label in known if _is_named(phrase, label)]
        for control, label in matches:
            by_name = _folded(phrase) in (_folded(label.name), _folded(label.value))
            collected.add_label(control, label, label.prompts if by_name and label.is_searched else (phrase,))
        if not matches:
            collected.add_phrase(other, phrase)


def with_threshold(query: Query, threshold: float) -> Query:
    """The query with this least score for everything."""
    wanted = tuple(
        replace(one, targets=tuple(replace(target, threshold=threshold) for target in one.targets))
        for one in query.wanted
    )
    return replace(query, wanted=wanted)


def split_phrases(text: str, names: Collection[str] = ()) -> list[str]:
    """``"cat . remote control"`` -> ``["cat", "remote control"]``: parts between ``. , ;`` and line ends,
    each once. A sentence gives the things it names: ``"A man rides a horse."`` -> ``["man", "horse"]``.

    What stands between ``. ;`` and line ends is a sentence when it begins with an article, a word like "two",
    "some" or "this", or "there", or has "is", "are", "was", "were", "has" or "have" in it. So is what stands
    between commas otherwise. Parts without a letter or digit are left out: there is nothing to look for.

    Args:
        names: what is one phrase whatever its words.
    """
    known = {_folded(name) for name in names}
    by_folded: dict[str, str] = {}
    for part in _PART_END.split(text[:MAX_PROMPT_CHARACTERS]):
        pieces = [part] if _is_sentence(part, known) else part.split(",")
        for piece in pieces:
            found = (
                [phrase.text for phrase in extract_phrases(piece)] if _is_sentence(piece, known) else [piece]
            )
            for phrase in found:
                if has_words(phrase):
                    by_folded.setdefault(_folded(phrase), " ".join(phrase.split()))
    return list(by_folded.values())


def _is_sentence(part: str, known: Collection[str]) -> bool:
    words = _folded(part).split()
    if not words or " ".join(words) in known:
        return False
    return len(words) > 1 and (words[0] in _SENTENCE_STARTS or not _SENTENCE_VERBS.isdisjoint(words))


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


def _names(label: ConfigLabel) -> tuple[str, ...]:
    return (label.name, label.value, *label.prompts, *label.aliases)


def _is_named(phrase: str, label: ConfigLabel) -> bool:
    return _folded(phrase) in {_folded(name) for name in _names(label)}


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
