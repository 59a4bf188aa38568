"""Filters on a project's tasks, as a person types them and as Label Studio's Data Manager wants them."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime, timezone
from typing import Any

_NUMBERS = frozenset(
    {
        "id",
        "inner_id",
        "total_annotations",
        "cancelled_annotations",
        "total_predictions",
        "predictions_score",
        "avg_lead_time",
    }
)
_TIMES = frozenset({"created_at", "updated_at", "completed_at"})
_TEXTS = frozenset({"file_upload", "storage_filename"})
_OPERATORS = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_or_equal",
    ">": "greater",
    ">=": "greater_or_equal",
    "contains": "contains",
    "!contains": "not_contains",
}
_FILTER = re.compile(r"\s*([\w.$ -]*?[\w$])\s*(<=|>=|!=|=|<|>|\s!?contains\s)\s*(.*?)\s*", re.DOTALL)
EXAMPLES = '"total_annotations = 0", "id > 1200", "data.site contains north", "created_at >= 2026-01-31"'


class FilterError(ValueError):
    """A filter cannot be read. The message says what it may be."""


def parse_filter(text: str) -> dict[str, Any]:
    """``"total_annotations = 0"`` -> the Data Manager's filter for it.

    Raises:
        FilterError: for an unknown column, operator or value.
    """
    match = _FILTER.fullmatch(text)
    if match is None:
        raise FilterError(f"{text!r} is no filter; filters look like {EXAMPLES}")
    column, sign, value = match[1], match[2].strip(), match[3]
    kind = _kind(column, sign, value)
    if kind is None:
        columns = ", ".join(sorted(_NUMBERS | _TIMES | _TEXTS))
        raise FilterError(f"{column!r} is not a column to filter by; use {columns}, or data.FIELD")
    if ("contains" in sign) != (kind == "String") and sign not in ("=", "!="):
        raise FilterError(f"{text!r}: {sign} does not go with {column}; filters look like {EXAMPLES}")
    return _item(column, _OPERATORS[sign], kind, _typed(value, kind, text))


def after(task: int) -> dict[str, Any]:
    """Tasks with an id greater than ``task``."""
    return _item("id", "greater", "Number", task)


def among(tasks: Collection[int]) -> dict[str, Any]:
    """Tasks with one of these ids."""
    return _item("id", "in_list", "Number", sorted(tasks))


def labelled_by(model_version: str) -> dict[str, Any]:
    """Tasks with a prediction of this version."""
    return _item("predictions_model_versions", "contains", "List", [model_version])


def not_labelled_by(model_version: str) -> dict[str, Any]:
    """Tasks without a prediction of this version."""
    return _item("predictions_model_versions", "not_contains", "List", [model_version])


def without_predictions() -> dict[str, Any]:
    """Tasks without any prediction."""
    return _item("total_predictions", "equal", "Number", 0)


def annotated() -> list[dict[str, Any]]:
    """Tasks with an annotation that was not skipped."""
    return [_item("total_annotations", "greater", "Number", 0)]


def only_skipped() -> list[dict[str, Any]]:
    """Tasks that were skipped, and not annotated."""
    skipped = _item("cancelled_annotations", "greater", "Number", 0)
    return [_item("total_annotations", "equal", "Number", 0), skipped]


def _item(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _kind(column: str, sign: str, value: str) -> str | None:
    if column in _NUMBERS:
        return "Number"
    if column in _TIMES:
        return "Datetime"
    if column in _TEXTS:
        return "String"
    if not column.startswith("data."):
        return None
    return "Number" if sign in ("<", "<=", ">", ">=") else "String"


def _typed(value: str, kind: str, text: str) -> float | str:
    if kind == "Number":
        try:
            return float(value)
        except ValueError as error:
            raise FilterError(f"{text!r}: {value!r} is no number") from error
    if kind == "Datetime":
        try:
            time = datetime.fromisoformat(value)
        except ValueError as error:
            raise FilterError(
                f"{text!r}: {value!r} is no time; write 2026-01-31 or 2026-01-31T08:00"
            ) from error
        if time.tzinfo is not None:
            time = time.astimezone(timezone.utc)
        return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if not value:
        raise FilterError(f"{text!r} has no value; filters look like {EXAMPLES}")
    return value
