"""What an annotator did in the editor last: typed a prompt, or drew a smart rectangle."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from groundingml.labelstudio.label_config import (
    THRESHOLD_CONTROL,
    ConfigImage,
    LabelConfig,
    PromptControl,
    RectangleControl,
)

logger = logging.getLogger(__name__)

LEAST_CROP_PIXELS = 4
"""Drawn rectangles with a shorter side hold nothing to detect."""


@dataclass(frozen=True)
class TypedPrompt:
    """A text in a smart `TextArea`."""

    control: PromptControl
    text: str


@dataclass(frozen=True)
class DrawnRectangle:
    """A smart rectangle, in percent of the upright image, turned by ``rotation`` degrees clockwise around its
    left top corner.

    ``controls`` are those it was drawn with, ``labels`` its labels there; none means any label.
    """

    image: ConfigImage
    controls: tuple[RectangleControl, ...]
    labels: frozenset[str]
    x: float
    y: float
    width: float
    height: float
    rotation: float

    def area(self, image_width: int, image_height: int) -> tuple[int, int, int, int] | None:
        """The pixels (left, top, right, bottom) of the image that enclose it; None when that is next to
        nothing."""
        left, top = self.x * image_width / 100, self.y * image_height / 100
        width, height = self.width * image_width / 100, self.height * image_height / 100
        cosine, sine = math.cos(math.radians(self.rotation)), math.sin(math.radians(self.rotation))
        corners = [(0.0, 0.0), (width, 0.0), (0.0, height), (width, height)]
        across = [left + x * cosine - y * sine for x, y in corners]
        down = [top + x * sine + y * cosine for x, y in corners]
        box = (
            max(0, math.floor(min(across) + 1e-6)),
            max(0, math.floor(min(down) + 1e-6)),
            min(image_width, math.ceil(max(across) - 1e-6)),
            min(image_height, math.ceil(max(down) - 1e-6)),
        )
        return box if min(box[2] - box[0], box[3] - box[1]) >= LEAST_CROP_PIXELS else None


def newest_action(config: LabelConfig, context_result: Any) -> TypedPrompt | DrawnRectangle | None:
    """What a request's ``context.result`` ends with: the editor puts the newest region last."""
    regions = _regions(context_result)
    for region in reversed(regions):
        action = (
            _typed(config, region) if region.get("type") == "textarea" else _drawn(config, region, regions)
        )
        if action is not None:
            return action
    return None


def chosen_threshold(task: Any, context_result: Any) -> float | None:
    """The least score that the annotator set in a `Number` or `TextArea` named ``box_threshold``: in the
    request itself, else in the newest draft of the task."""
    drafts = task.get("drafts") if isinstance(task, dict) else None
    drafts = [draft for draft in drafts if isinstance(draft, dict)] if isinstance(drafts, list) else []
    drafts = sorted(drafts, key=lambda draft: str(draft.get("updated_at", "")))
    drafted = drafts[-1].get("result") if drafts else None
    for region in [*reversed(_regions(context_result)), *reversed(_regions(drafted))]:
        if region.get("from_name") != THRESHOLD_CONTROL:
            continue
        value = region.get("value")
        entered = value.get("number", last_text(value)) if isinstance(value, dict) else None
        try:
            threshold = float(entered)  # type: ignore[arg-type]  # None and others raise
        except (TypeError, ValueError):
            threshold = math.nan
        if 0 <= threshold <= 1:
            return threshold
        logger.warning("%s holds %.20r, which is no number from 0 to 1", THRESHOLD_CONTROL, entered)
    return None


def _regions(result: Any) -> list[dict[str, Any]]:
    return [region for region in result if isinstance(region, dict)] if isinstance(result, list) else []


def _typed(config: LabelConfig, region: dict[str, Any]) -> TypedPrompt | None:
    value = region.get("value")
    text = last_text(value) if isinstance(value, dict) else None
    for control in config.prompts:
        if control.name == region.get("from_name") and text is not None:
            return TypedPrompt(control, text)
    return None


def last_text(value: dict[str, Any]) -> str | None:
    """The text that was entered last in a `TextArea`; None when all are blank."""
    texts = value.get("text")
    texts = [texts] if isinstance(texts, str) else texts
    typed = (
        [text for text in texts if isinstance(text, str) and text.strip()] if isinstance(texts, list) else []
    )
    return typed[-1] if typed else None


def _drawn(
    config: LabelConfig, region: dict[str, Any], regions: Sequence[dict[str, Any]]
) -> DrawnRectangle | None:
    controls = [c for c in config.controls if region.get("from_name") in (c.name, c.rectangle)]
    value = region.get("value")
    if not controls or not isinstance(value, dict):
        return None
    geometry = [value.get(name, 0) for name in ("x", "y", "width", "height", "rotation")]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in geometry):
        return None
    # A rectangle and its labels are two entries with one id.
    parts = [one for one in regions if one is region or one.get("id", region) == region.get("id")]
    labelled = [
        (control, name)
        for part in parts
        for control in config.controls
        if part.get("from_name") == control.name
        for name in _labels(part.get("value"))
    ]
    chosen = tuple(dict.fromkeys(control for control, _ in labelled)) or tuple(controls)
    x, y, width, height, rotation = (float(number) for number in geometry)
    if width <= 0 or height <= 0:
        return None
    names = frozenset(name for _, name in labelled)
    return DrawnRectangle(chosen[0].image, chosen, names, x, y, width, height, rotation)


def _labels(value: Any) -> list[str]:
    lists = [value.get("rectanglelabels"), value.get("labels")] if isinstance(value, dict) else []
    return [name for names in lists if isinstance(names, list) for name in names if isinstance(name, str)]
