"""Options of a project: attributes of its label config, and `extra_params` as JSON.

`extra_params` stands on a control (`<RectangleLabels extra_params='{"tile": 1024}' ...>`), where it goes
wherever the config goes, or in Label Studio's form Connect Model, where it gives the defaults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast, get_args
from xml.etree.ElementTree import Element

from groundingml.inference import Tiling

TaskScore = Literal["mean", "min", "uncertainty"]


class LabelConfigError(ValueError):
    """The label config cannot be used. The message names the tags concerned and what to change."""


@dataclass(frozen=True)
class Options:
    """What `extra_params` may hold; None and () where it says nothing.

    threshold: least score of labels and controls that set none.
    negative_prompts: of all labels.
    merge_iou: boxes of one label found by different prompts are one object from this overlap on.
    tile: look at images in tiles too, for what is small in them.
    task_score: how a task's score comes from those of its regions.
    """

    threshold: float | None = None
    negative_prompts: tuple[str, ...] = ()
    merge_iou: float | None = None
    tile: Tiling | None = None
    task_score: TaskScore | None = None

    def over(self, defaults: Options) -> Options:
        """These options, with those of ``defaults`` where these say nothing."""
        chosen = {
            field.name: getattr(self if getattr(self, field.name) not in (None, ()) else defaults, field.name)
            for field in fields(Options)
        }
        return Options(**chosen)


NO_OPTIONS = Options()


def parse_extra_params(extra_params: Any, where: str) -> Options:
    """Options from a JSON text, or what it holds already; nothing is no options.

    Args:
        where: what to call it in errors, e.g. 'extra_params of <RectangleLabels name="label">'.

    Raises:
        LabelConfigError: it is no JSON object, or holds an unknown name or an impossible value.
    """
    if isinstance(extra_params, str):
        try:
            extra_params = json.loads(extra_params) if extra_params.strip() else None
        except (ValueError, RecursionError) as error:
            raise LabelConfigError(f'{where} must be JSON, like {{"threshold": 0.3}}: {error}.') from error
    if extra_params is None:
        return NO_OPTIONS
    if not isinstance(extra_params, dict):
        raise LabelConfigError(f'{where} must be a JSON object, like {{"threshold": 0.3}}.')
    known = [field.name for field in fields(Options)]
    for name in extra_params:
        if name not in known:
            raise LabelConfigError(f'{where}: "{name}" is unknown; there are {", ".join(known)}.')
    values: Mapping[str, Any] = {name: value for name, value in extra_params.items() if value is not None}
    return Options(
        threshold=_fraction(values, "threshold", where),
        negative_prompts=_texts(values, "negative_prompts", where),
        merge_iou=_fraction(values, "merge_iou", where),
        tile=_tiling(values, where),
        task_score=_task_score(values, where),
    )


def common_options(options: Iterable[Options]) -> Options:
    """What concerns images and tasks as a whole, from the options of all controls.

    Raises:
        LabelConfigError: when two controls disagree.
    """
    chosen: dict[str, Any] = {}
    for one in options:
        for name in ("merge_iou", "tile", "task_score"):
            value = getattr(one, name)
            if value is not None and chosen.setdefault(name, value) != value:
                raise LabelConfigError(
                    f'Two controls disagree about "{name}" in their extra_params, but it is for the whole '
                    "config; give it to one of them."
                )
    return Options(**chosen)


def score_attribute(tag: Element, attribute: str) -> float | None:
    """An attribute that holds a score.

    Raises:
        LabelConfigError: it is no number from 0 to 1.
    """
    text = tag.get(attribute, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise LabelConfigError(f'{described(tag)} has {attribute}="{text}"; it must be a number from 0 to 1.')
    return value


def is_true(tag: Element, attribute: str) -> bool:
    """Whether a flag such as ``smart="true"`` is set."""
    return tag.get(attribute, "").strip().lower() in ("true", "1", "yes")


def split_texts(text: str) -> tuple[str, ...]:
    """``"cat, kitten"`` -> its parts between commas, each once."""
    parts = (" ".join(part.split()) for part in text.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def has_words(text: str) -> bool:
    """Whether a detector can look for ``text`` at all. Signs outside ASCII may be words of any language."""
    return any(character.isalnum() or not character.isascii() for character in text)


def described(tag: Element) -> str:
    """A tag as it is named in messages."""
    attribute = "value" if tag.tag == "Label" else "name"
    value = tag.get(attribute)
    return f'<{tag.tag} {attribute}="{value}">' if value else f"<{tag.tag}>"


def _fraction(values: Mapping[str, Any], name: str, where: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise LabelConfigError(f'{where}: "{name}" must be a number from 0 to 1, not {json.dumps(value)}.')
    return float(value)


def _texts(values: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = values.get(name, ())
    texts = split_texts(value) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(
        isinstance(text, str) and has_words(text) for text in texts
    ):
        raise LabelConfigError(f'{where}: "{name}" must be a list of texts, not {json.dumps(value)}.')
    return tuple(dict.fromkeys(texts))


def _tiling(values: Mapping[str, Any], where: str) -> Tiling | None:
    value = values.get("tile")
    if value is None:
        return None
    try:
        return Tiling(**value) if isinstance(value, dict) else Tiling(value)
    except (TypeError, ValueError) as error:  # TypeError: other names than size and overlap
        raise LabelConfigError(
            f'{where}: "tile" must be a size in pixels like 1024, or {{"size": 1024, "overlap": 256}}, not '
            f"{json.dumps(value)} ({error})."
        ) from error


def _task_score(values: Mapping[str, Any], where: str) -> TaskScore | None:
    value = values.get("task_score")
    if value is None:
        return None
    if value not in get_args(TaskScore):
        raise LabelConfigError(
            f'{where}: "task_score" must be one of {", ".join(get_args(TaskScore))}, not {json.dumps(value)}.'
        )
    return cast("TaskScore", value)
