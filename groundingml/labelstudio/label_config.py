"""A project's label config: XML -> what to look for in which image, and how to name what is found.

Rectangles only: `RectangleLabels`, or `Labels` with a `Rectangle`, on an `Image`. Other controls may stand
beside them and are left to the annotators; a config without any rectangle control is refused by naming what
it has instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from groundingml.labelstudio.config_labels import (
    ConfigLabel,
    label_named,
    own_description,
    read_label,
    read_task_label,
)
from groundingml.labelstudio.config_options import (
    NO_OPTIONS,
    LabelConfigError,
    Options,
    common_options,
    described,
    has_words,
    is_true,
    parse_extra_params,
    score_attribute,
    split_texts,
)

__all__ = [
    "ConfigImage",
    "ConfigLabel",
    "LabelConfig",
    "LabelConfigError",
    "PromptControl",
    "RectangleControl",
    "parse_label_config",
]

MAX_CONFIG_CHARACTERS = 2_000_000
THRESHOLD_CONTROL = "box_threshold"
"""A `Number` or `TextArea` of this name is where annotators set the least score themselves."""

_SHAPES = (
    "PolygonLabels",
    "BrushLabels",
    "EllipseLabels",
    "KeyPointLabels",
    "BitmaskLabels",
    "VectorLabels",
    "Polygon",
    "Brush",
    "Ellipse",
    "KeyPoint",
    "Bitmask",
    "Vector",
    "MagicWand",
    "VideoRectangle",
)


@dataclass(frozen=True)
class ConfigImage:
    """An `Image` tag: ``name`` in the config, ``key`` in the task's data."""

    name: str
    key: str


@dataclass(frozen=True)
class RectangleControl:
    """A `RectangleLabels` tag, or a `Labels` tag whose boxes are drawn by the `Rectangle` tag ``rectangle``.

    ``labels_key`` is set for ``value="$labels"``: more labels come with each task. ``unmatched`` is the name
    of the label for what typed phrases find that are no label.
    """

    name: str
    image: ConfigImage
    labels: tuple[ConfigLabel, ...]
    threshold: float | None
    labels_key: str | None
    rectangle: str | None = None
    unmatched: str | None = None
    negative_prompts: tuple[str, ...] = ()

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
                f'<{self.tag} name="{self.name}" value="${self.labels_key}"> takes its labels from the '
                f'task, but the task\'s data has no list "{self.labels_key}"; use for example '
                f'"{self.labels_key}": [{{"value": "cat"}}, {{"value": "dog"}}].'
            )
        return self.labels + tuple(read_task_label(entry, self.labels_key) for entry in entries)

    @property
    def tag(self) -> str:
        """What kind of tag it is."""
        return "RectangleLabels" if self.rectangle is None else "Labels"


@dataclass(frozen=True)
class PromptControl:
    """A smart `TextArea`: what an annotator types there is a prompt for ``image``."""

    name: str
    image: ConfigImage


@dataclass(frozen=True)
class LabelConfig:
    """All of a config that matters for predictions. ``unsupported`` names controls that draw shapes which
    cannot be predicted."""

    controls: tuple[RectangleControl, ...]
    prompts: tuple[PromptControl, ...]
    options: Options = NO_OPTIONS
    unsupported: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[ConfigImage, ...]:
        """The images that have a rectangle control, in the config's order, each once."""
        return tuple(dict.fromkeys(control.image for control in self.controls))

    def controls_of(self, image: ConfigImage) -> tuple[RectangleControl, ...]:
        """The rectangle controls that draw on ``image``."""
        return tuple(control for control in self.controls if control.image == image)


def parse_label_config(xml: str, extra_params: Any = None) -> LabelConfig:
    """Read a label config.

    Args:
        extra_params: defaults for the options of its controls, as `/setup` brings them: an object, its JSON,
            or nothing.

    Raises:
        LabelConfigError: when it is not XML, declares a DOCTYPE or entities, or has no usable rectangle
            control.
    """
    root = _parse_xml(xml)
    defaults = parse_extra_params(extra_params, "The connection's extra_params")
    images = _read_images(root)
    controls = []
    options = []
    for tag, rectangle in _rectangle_tags(root):
        own = parse_extra_params(tag.get("extra_params"), f"extra_params of {described(tag)}")
        controls.append(_read_control(tag, rectangle, _image_of(tag, images, root), own.over(defaults)))
        options.append(own)
    if not controls:
        raise LabelConfigError(_nothing_usable(root))
    names = [control.name for control in controls]
    if len(set(names)) < len(names):
        raise LabelConfigError(f"Several controls share one name: {', '.join(sorted(set(names)))}.")
    prompts = tuple(
        PromptControl(_attribute(tag, "name"), image)
        for tag in root.iter("TextArea")
        if is_true(tag, "smart") and not is_true(tag, "model_skip") and tag.get("name") != THRESHOLD_CONTROL
        for image in [images.get(_first_target(tag))]
        if image is not None
    )
    unsupported = tuple(
        described(tag) for tag in root.iter() if tag.tag in _SHAPES and not is_true(tag, "model_skip")
    )
    shared = common_options(options).over(common_options([defaults]))
    return LabelConfig(tuple(controls), prompts, shared, unsupported)


def _rectangle_tags(root: Element) -> Iterator[tuple[Element, str | None]]:
    """Tags with labels for boxes, in order; for a `Labels` tag the name of the `Rectangle` that draws
    them."""
    drawn_on = {
        _first_target(tag): _attribute(tag, "name")
        for tag in reversed(list(root.iter("Rectangle")))
        if not is_true(tag, "model_skip")
    }
    for tag in root.iter():
        if is_true(tag, "model_skip"):
            continue
        if tag.tag == "RectangleLabels":
            yield tag, None
        elif tag.tag == "Labels" and _first_target(tag) in drawn_on:
            yield tag, drawn_on[_first_target(tag)]


def _nothing_usable(root: Element) -> str:
    skipped = [tag for tag in root.iter() if tag.tag in ("RectangleLabels", "Labels", "Rectangle")]
    skipped = [tag for tag in skipped if is_true(tag, "model_skip")]
    if skipped:
        tags = ", ".join(described(tag) for tag in skipped)
        return f'Every rectangle control has model_skip="true" ({tags}), so there is nothing to predict.'
    return (
        "This label config has no <RectangleLabels>, and no <Labels> with a <Rectangle>, for an image "
        f"(it has {_control_tags(root)}). groundingml predicts rectangles: add "
        '<RectangleLabels name="label" toName="image"> with <Label> tags inside.'
    )


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
    control = f'<{tag.tag} name="{tag.get("name", "")}" toName="{target}">'
    if target not in images:
        other = next((t.tag for t in root.iter() if t.get("name") == target), None)
        what = f"a <{other}>" if other else "nothing in this config"
        raise LabelConfigError(f"{control} points at {what}; groundingml needs it to point at an <Image>.")
    image = images[target]
    if image is None:
        raise LabelConfigError(
            f'<Image name="{target}"> must take its picture from one field of the task, like value="$image"; '
            "lists of pictures (valueList) and composed values are not supported."
        )
    return image


def _read_control(
    tag: Element, rectangle: str | None, image: ConfigImage, options: Options
) -> RectangleControl:
    name = _attribute(tag, "name")
    tags = list(tag.iter("Label"))
    labels = tuple(read_label(label, described(tag)) for label in tags)
    value = tag.get("value", "").strip()
    labels_key = value[1:] if value.startswith("$") and len(value) > 1 else None
    if not labels and labels_key is None:
        raise LabelConfigError(f'{described(tag)} has no labels; put <Label value="..."/> tags inside it.')
    unmatched = " ".join(tag.get("unmatched", "").split()) or None
    if unmatched is not None and labels_key is None:
        other = label_named(labels, unmatched, tag, "unmatched")
        unmatched = other.name
        # "Other" looks like nothing; it is searched only when the config says what it looks like.
        labels = tuple(
            replace(label, is_searched=label is not other or own_description(label_tag))
            for label, label_tag in zip(labels, tags, strict=True)
        )
    threshold = score_attribute(tag, "model_score_threshold")
    negatives = split_texts(tag.get("negative_prompts", ""))
    if not all(map(has_words, negatives)):
        raise LabelConfigError(f"{described(tag)}: each of its negative_prompts needs a letter or digit.")
    return RectangleControl(
        name,
        image,
        labels,
        options.threshold if threshold is None else threshold,
        labels_key,
        rectangle,
        unmatched,
        tuple(dict.fromkeys(negatives + options.negative_prompts)),
    )


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
