"""Least scores by label, and the file beside a model's weights that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from groundingml.models.load import FITTED_THRESHOLDS


class ThresholdsError(ValueError):
    """A thresholds file that cannot be used. The message names it and what is wrong."""


@dataclass(frozen=True)
class Thresholds:
    """The least score of a box, for labels that the question itself gives none.

    default: of labels that are not listed. labels: label name -> its own, as fitted for a trained model.
    """

    default: float
    labels: Mapping[str, float] = field(default_factory=dict)

    def of(self, label: str) -> float:
        """The label's least score."""
        return self.labels.get(label, self.default)


def read_label_thresholds(folder: Path | None) -> dict[str, float]:
    """The label thresholds that lie beside the weights in a model's folder; none where there is no file.

    Raises:
        ThresholdsError: a damaged file, or values that are no scores.
    """
    if folder is None or not (folder / FITTED_THRESHOLDS).is_file():
        return {}
    file = folder / FITTED_THRESHOLDS
    try:
        labels = json.loads(file.read_text("utf-8"))["labels"]
        found = {str(name): entry["threshold"] for name, entry in labels.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ThresholdsError(
            f'{file} is not {{"labels": {{name: {{"threshold": score}}}}}}: {error!r}'
        ) from error
    for name, value in found.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ThresholdsError(f"{file}: the threshold of {name!r} must lie in 0..1, got {value!r}")
    return {name: float(value) for name, value in found.items()}
