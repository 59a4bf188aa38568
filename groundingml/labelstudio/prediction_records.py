"""Predictions as Label Studio gets them -> what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from groundingml.learning.regions import accepted_regions
from groundingml.store.predictions import NewPrediction, NewRegion, Source

if TYPE_CHECKING:
    from groundingml.labelstudio.capture import Capture
    from groundingml.labelstudio.predictor import Predicted


MOST_ASKED = 50
"""A prediction that asked for more labels keeps the prompts of those only that it found."""


def record_in(capture: Capture) -> Callable[[Predicted], None]:
    """What a predictor calls with each predicted task."""

    def record(predicted: Predicted) -> None:
        task = str(predicted.task.get("id"))
        capture.record(
            new_prediction(predicted.project, task, predicted.item, predicted.prompt, predicted.source)
        )

    return record


def new_prediction(
    project: str,
    task: str,
    item: Mapping[str, Any],
    prompt: Any,
    source: Source,
) -> NewPrediction:
    """What is recorded of a prediction that Label Studio gets.

    Args:
        item: with its `result`, `score` and `model_version`.
        prompt: what was asked, as JSON; ``prompt["asked"]``, if there is one, gives the prompts by label.
    """
    asked = prompt.get("asked") if isinstance(prompt, Mapping) else None
    score = item.get("score")
    kept = prompt
    if isinstance(asked, Mapping) and len(asked) > MOST_ASKED:
        kept = {name: value for name, value in prompt.items() if name != "asked"}
    return NewPrediction(
        project,
        task,
        str(item.get("model_version")),
        source,
        kept,
        float(score) if isinstance(score, int | float) else None,
        new_regions(item.get("result"), asked if isinstance(asked, Mapping) else {}),
        image_size(item.get("result")),
    )


def image_size(result: Any) -> tuple[int, int] | None:
    """Width and height of the one image that a result is about; None when it tells none, or several."""
    regions = accepted_regions(result if isinstance(result, list) else [])
    sizes = {(one.image_width, one.image_height) for one in regions}
    width, height = sizes.pop() if len(sizes) == 1 else (None, None)
    return (width, height) if width is not None and height is not None else None


def new_regions(result: Any, asked: Mapping[str, Any]) -> Sequence[NewRegion]:
    """The boxes of a prediction's result."""
    entries = result if isinstance(result, list) else []
    scores = {entry.get("id"): entry.get("score") for entry in entries if isinstance(entry, Mapping)}
    phrases = {entry.get("id"): _phrase(entry) for entry in entries if isinstance(entry, Mapping)}
    found = []
    for region in accepted_regions(entries):
        score, phrase = scores.get(region.region_id), phrases.get(region.region_id)
        found.append(
            NewRegion(
                region_id=region.region_id,
                from_name=region.from_name,
                to_name=region.image,
                label=region.label,
                phrase=phrase,
                prompt=asked.get(phrase or region.label or "", phrase),
                **region.box.as_json(),
                score=float(score) if isinstance(score, int | float) else 0.0,
            )
        )
    return found


def _phrase(entry: Mapping[str, Any]) -> str | None:
    meta = entry.get("meta")
    texts = meta.get("text") if isinstance(meta, Mapping) else None
    return str(texts[0]) if isinstance(texts, list) and texts else None
