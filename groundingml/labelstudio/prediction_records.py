"""Predictions as Label Studio gets them -> what is recorded of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from groundingml.learning.regions import accepted_regions
from groundingml.store.predictions import NewPrediction, NewRegion, Source


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
    return NewPrediction(
        project,
        task,
        str(item.get("model_version")),
        source,
        prompt,
        float(score) if isinstance(score, int | float) else None,
        new_regions(item.get("result"), asked if isinstance(asked, Mapping) else {}),
    )


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
