"""The labels of a control: what they are called in results, and what is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from groundingml.labelstudio.config_options import (
    LabelConfigError,
    described,
    has_words,
    score_attribute,
    split_texts,
)


@dataclass(frozen=True)
class ConfigLabel:
    """One label: ``name`` is what Label Studio expects in results, ``prompts`` what the detector is asked
    for, ``aliases`` what else an annotator may type for it, ``threshold`` its own least score."""

    name: str
    value: str
    prompts: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    threshold: float | None = None
    negative_prompts: tuple[str, ...] = ()
    is_searched: bool = True
    """False for a label that only names what typed phrases find."""


def read_label(tag: Element, control: str) -> ConfigLabel:
    """A `Label` tag of the control ``control`` (as named in messages).

    Raises:
        LabelConfigError: it has no value, or nothing that a detector could look for.
    """
    value = " ".join(tag.get("value", "").split())
    if not value:
        raise LabelConfigError(f'A <Label> inside {control} has no value="...".')
    # Results must hold the alias instead of the value where there is one, byte for byte as the config has it.
    name = tag.get("alias", "") or tag.get("value", "")
    prompt = " ".join(tag.get("prompt", "").split())
    aliases = split_texts(tag.get("predicted_values", ""))
    prompts = (prompt,) if prompt else aliases or (value,)
    negatives = split_texts(tag.get("negative_prompts", ""))
    if not all(has_words(text) for text in prompts + negatives):
        raise LabelConfigError(
            f'The label "{value}" cannot be looked for: its name, prompt, predicted_values and '
            "negative_prompts need a letter or digit. Say what it looks like: "
            f'<Label value="{value}" prompt="..."/>.'
        )
    threshold = score_attribute(tag, "score_threshold")
    return ConfigLabel(name, value, prompts, aliases, threshold, negatives)


def read_task_label(entry: Any, key: str) -> ConfigLabel:
    """One entry of a task's own list of labels ``key``: a name, or an object with "value" and "alias".

    Raises:
        LabelConfigError: it is neither.
    """
    entries = {"value": entry} if isinstance(entry, str) else entry
    value = entries.get("value") if isinstance(entries, dict) else None
    if not isinstance(value, str) or not has_words(value):
        raise LabelConfigError(
            f'An entry of the task\'s "{key}" is no label; each needs a "value" with words.'
        )
    alias = entries.get("alias")
    shown = " ".join(value.split())
    return ConfigLabel(alias if isinstance(alias, str) and alias else value, shown, (shown,))


def own_description(tag: Element) -> bool:
    """Whether a `Label` says itself what to look for, other than by its name."""
    return bool(tag.get("prompt", "").strip() or tag.get("predicted_values", "").strip())


def label_named(labels: tuple[ConfigLabel, ...], name: str, tag: Element, attribute: str) -> ConfigLabel:
    """The label of a control that an attribute of it names, by value or alias.

    Raises:
        LabelConfigError: there is none.
    """
    for label in labels:
        if name in (label.name, label.value):
            return label
    names = ", ".join(label.value for label in labels)
    raise LabelConfigError(
        f'{described(tag)} has {attribute}="{name}", which is none of its labels ({names}).'
    )
