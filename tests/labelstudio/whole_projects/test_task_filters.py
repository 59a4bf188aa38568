from __future__ import annotations

from typing import Any

import pytest

from groundingml.labelstudio.task_filters import FilterError, parse_filter


@pytest.mark.parametrize(
    ("text", "column", "operator", "kind", "value"),
    [
        ("total_annotations = 0", "total_annotations", "equal", "Number", 0),
        ("id>=12", "id", "greater_or_equal", "Number", 12),
        ("data.site contains the north", "data.site", "contains", "String", "the north"),
        ("data.site !contains x", "data.site", "not_contains", "String", "x"),
        ("data.url = http://a/?b=c", "data.url", "equal", "String", "http://a/?b=c"),
        ("data.size < 1.5", "data.size", "less", "Number", 1.5),
        ("created_at > 2026-01-31", "created_at", "greater", "Datetime", "2026-01-31T00:00:00.000000Z"),
        (
            "created_at < 2026-01-31T08:00+02:00",
            "created_at",
            "less",
            "Datetime",
            "2026-01-31T06:00:00.000000Z",
        ),
    ],
)
def test_filters_as_the_data_manager_wants_them(
    text: str, column: str, operator: str, kind: str, value: Any
) -> None:
    expected = {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
    assert parse_filter(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no filter"),
        ("nonsense = 1", "'nonsense' is not a column"),
        ("id = many", "'many' is no number"),
        ("id contains 3", "contains does not go with id"),
        ("created_at > soon", "'soon' is no time"),
        ("data.site contains ", "has no value"),
        ("file_upload < 3", "< does not go with file_upload"),
    ],
)
def test_others_are_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(FilterError, match=said):
        parse_filter(text)
