"""A project's label config: XML -> what to look for in which image, and how to name what is found.

Rectangles only: a `RectangleLabels` control with its labels, on an `Image`. Other controls may stand beside
it and are left to the annotators; a config without any rectangle control is refused by naming what it has
instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

MAX_CONFIG_CHARACTERS = 2_000_000


class LabelConfigError(ValueError):
    """The label config cannot be used. The message names the tags concerned and what to change."""


@dataclass(frozen=True)
class ConfigLabel:
    """One label: ``name`` is what Label Studio expects in results, ``prompts`` what the detector is asked
    for."""

    name: str
    value: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class ConfigImage:
    """An `Image` tag: ``name`` in the config, ``key`` in the task's data."""

    name: str
    key: str


@dataclass(frozen=True)
class RectangleControl:
    """A `RectangleLabels` tag. ``labels_key`` is set for ``value="$labels"``: more labels come with each
    task."""

    name: str
    image: ConfigImage
    labels: tuple[ConfigLabel, ...]
    threshold: float | None
    labels_key: str | None

    def labels_of(self, task_data: Mapping[str, Any]) -> tuple[ConfigLabel, ...]:
        """The labels for one task: those of the config, then those the task itself brings.

        Raises:
            LabelConfigError: when the config says that the task brings labels, and it does not.
        """
        if self.labels_key is None:
            return self.labels
        entries = task_data.get(self.labels_key)
        if not isinstance(entries, list):
            raise LabelConfigError(
                f'<RectangleLabels name="{self.name}" value="${self.labels_key}"> takes its labels from the '
                f'task, but the task\'s data has no list "{self.labels_key}"; use for example '
                f'"{self.labels_key}": [{{"value": "cat"}}, {{"value": "dog"}}].'
            )
        return self.labels + tuple(_task_label(entry, self.labels_key) for entry in entries)


@dataclass(frozen=True)
class PromptControl:
    """A smart `TextArea`: what an annotator types there is a prompt for ``image``."""

    name: str
    image: ConfigImage


@dataclass(frozen=True)
class LabelConfig:
    """All of a config that matters for predictions."""

    controls: tuple[RectangleControl, ...]
    prompts: tuple[PromptControl, ...]

    @property
    def images(self) -> tuple[ConfigImage, ...]:
        """The images that have a rectangle control, in the config's order, each once."""
        return tuple(dict.fromkeys(control.image for control in self.controls))

    def controls_of(self, image: ConfigImage) -> tuple[RectangleControl, ...]:
        """The rectangle controls that draw on ``image``."""
        return tuple(control for control in self.controls if control.image == image)


def parse_label_config(xml: str) -> LabelConfig:
    """Read a label config.

    Raises:
        LabelConfigError: when it is not XML, declares a DOCTYPE or entities, or has no usable rectangle
            control.
    """
    root = _parse_xml(xml)
    images = _read_images(root)
    controls = tuple(_read_control(tag, _image_of(tag, images, root)) for tag in root.iter("RectangleLabels"))
    if not controls:
        raise LabelConfigError(
            f"This label config has no <RectangleLabels> control (it has {_control_tags(root)}). groundingml "
            'predicts rectangles: add <RectangleLabels name="label" toName="image"> with <Label> tags inside.'
        )
    names = [control.name for control in controls]
    if len(set(names)) < len(names):
        raise LabelConfigError(
            f"Several <RectangleLabels> controls share one name: {', '.join(sorted(set(names)))}."
        )
    prompts = tuple(
        PromptControl(_attribute(tag, "name"), _image_of(tag, images, root))
        for tag in root.iter("TextArea")
        if tag.get("smart", "").strip().lower() == "true" and _first_target(tag) in images
    )
    return LabelConfig(controls=controls, prompts=prompts)


def has_words(text: str) -> bool:
    """Whether a detector can look for ``text`` at all. Signs outside ASCII may be words of any language."""
    return any(character.isalnum() or not character.isascii() for character in text)


def _parse_xml(xml: str) -> Element:
    if len(xml) > MAX_CONFIG_CHARACTERS:
        raise LabelConfigError(f"This label config is larger than {MAX_CONFIG_CHARACTERS:,} characters.")
    try:
        root: Element = ElementTree.fromstring(xml.strip(), forbid_dtd=True)
    except DefusedXmlException as error:
        raise LabelConfigError("This label config declares a DOCTYPE or entities; remove them.") from error
    except (ParseError, ValueError) as error:
        raise LabelConfigError(f"This label config is not well-formed XML: {error}.") from error
    return root


def _read_images(root: Element) -> dict[str, ConfigImage | None]:
    """Images by name; None for an image whose task data is not a single ``$key``."""
    images: dict[str, ConfigImage | None] = {}
    for tag in root.iter("Image"):
        value = tag.get("value", "").strip()
        key = value[1:] if value.startswith("$") else ""
        usable = key != "" and not any(character in key for character in "${}[] ")
        images[_attribute(tag, "name")] = ConfigImage(_attribute(tag, "name"), key) if usable else None
    return images


def _image_of(tag: Element, images: Mapping[str, ConfigImage | None], root: Element) -> ConfigImage:
    target = _first_target(tag)
    described = f'<{tag.tag} name="{tag.get("name", "")}" toName="{target}">'
    if target not in images:
        other = next((t.tag for t in root.iter() if t.get("name") == target), None)
        what = f"a <{other}>" if other else "nothing in this config"
        raise LabelConfigError(f"{described} points at {what}; groundingml needs it to point at an <Image>.")
    image = images[target]
    if image is None:
        raise LabelConfigError(
            f'<Image name="{target}"> must take its picture from one field of the task, like value="$image"; '
            "lists of pictures (valueList) and composed values are not supported."
        )
    return image


def _read_control(tag: Element, image: ConfigImage) -> RectangleControl:
    name = _attribute(tag, "name")
    labels = tuple(_read_label(label, name) for label in tag.iter("Label"))
    value = tag.get("value", "").strip()
    labels_key = value[1:] if value.startswith("$") and len(value) > 1 else None
    if not labels and labels_key is None:
        raise LabelConfigError(
            f'<RectangleLabels name="{name}"> has no labels; put <Label value="..."/> tags inside it.'
        )
    return RectangleControl(name, image, labels, _read_threshold(tag, name), labels_key)


def _read_label(tag: Element, control: str) -> ConfigLabel:
    value = " ".join(tag.get("value", "").split())
    if not value:
        raise LabelConfigError(f'A <Label> inside <RectangleLabels name="{control}"> has no value="...".')
    # Results must hold the alias instead of the value where there is one, byte for byte as the config has it.
    name = tag.get("alias", "") or tag.get("value", "")
    prompts = _split_aliases(tag.get("predicted_values", "")) or (value,)
    if not all(has_words(prompt) for prompt in prompts):
        raise LabelConfigError(
            f'The label "{value}" cannot be looked for: its name and predicted_values need a letter or '
            f'digit. Say what it looks like: <Label value="{value}" predicted_values="..."/>.'
        )
    return ConfigLabel(name, value, prompts)


def _task_label(entry: Any, key: str) -> ConfigLabel:
    fields = {"value": entry} if isinstance(entry, str) else entry
    value = fields.get("value") if isinstance(fields, dict) else None
    if not isinstance(value, str) or not has_words(value):
        raise LabelConfigError(
            f'An entry of the task\'s "{key}" is no label; each needs a "value" with words.'
        )
    alias = fields.get("alias")
    return ConfigLabel(
        alias if isinstance(alias, str) and alias else value,
        " ".join(value.split()),
        (" ".join(value.split()),),
    )


def _split_aliases(text: str) -> tuple[str, ...]:
    aliases = (" ".join(part.split()) for part in text.split(","))
    return tuple(dict.fromkeys(alias for alias in aliases if alias))


def _read_threshold(tag: Element, control: str) -> float | None:
    text = tag.get("model_score_threshold", "").strip()
    if not text:
        return None
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise LabelConfigError(
            f'<RectangleLabels name="{control}"> has model_score_threshold="{text}"; '
            "it must be a number from 0 to 1."
        )
    return threshold


def _attribute(tag: Element, attribute: str) -> str:
    value = tag.get(attribute, "")
    if not value:
        raise LabelConfigError(f"A <{tag.tag}> of this label config has no {attribute}.")
    return value


def _first_target(tag: Element) -> str:
    return tag.get("toName", "").split(",")[0].strip()


def _control_tags(root: Element) -> str:
    tags = dict.fromkeys(f"<{tag.tag}>" for tag in root.iter() if tag.get("toName"))
    return ", ".join(tags) or "no control at all"
