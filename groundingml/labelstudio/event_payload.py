"""What is kept of a webhook's body: what corrections need, and no secret.

Bodies carry the project's token and the password of its task data, and task data may hold links that open
for whoever has them. Of the project only four fields are kept; everywhere else fields that are named like
secrets go, and what signs or opens a URL is cut out of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

PROJECT_FIELDS = ("id", "title", "label_config", "updated_at")
TASK_FIELDS = ("id", "data", "project", "updated_at")
ANNOTATION_FIELDS = (
    "id", "result", "was_cancelled", "created_at", "updated_at", "lead_time", "task", "project",
    "completed_by", "parent_prediction",
)  # fmt: skip
_LISTS = {"annotation": ANNOTATION_FIELDS, "annotations": ANNOTATION_FIELDS, "task": TASK_FIELDS}
_LISTS["tasks"] = TASK_FIELDS
MOST_TOGETHER = 20
"""Annotations or tasks of one event."""
_MOST_DEEP = 40

_SECRET_NAME = re.compile(
    r"password|passwd|secret|token|credential|authorization|cookie|api_?key|access_?key|private_?key|signature",
    re.IGNORECASE,
)
_SIGNING = re.compile(
    r"^x-(amz|goog|oss|cos)-|signature|^sig$|token|secret|password|credential|api-?_?key|access-?_?key",
    re.IGNORECASE,
)


def project_of(body: Mapping[str, Any]) -> str | None:
    """Label Studio's number of the project that a webhook is about, as text."""
    project = body.get("project")
    number = project.get("id") if isinstance(project, Mapping) else project
    if isinstance(number, bool) or not isinstance(number, int | str):
        return None
    return str(number).partition(".")[0][:100] or None


def payload_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a webhook's body that is kept."""
    kept: dict[str, Any] = {}
    project = body.get("project")
    if isinstance(project, Mapping):
        kept["project"] = _chosen(project, PROJECT_FIELDS)
    for name, fields in _LISTS.items():
        value = body.get(name)
        if isinstance(value, list):
            kept[name] = [_chosen(one, fields) for one in value if isinstance(one, Mapping)]
        elif isinstance(value, Mapping):
            kept[name] = _chosen(value, fields)
    return kept


def parts_of(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """A payload about many annotations or tasks as several about a few each, in the same order.

    "Create annotations from predictions" tells of a whole project at once, and nobody else can write while
    an event is processed.
    """
    name = next(
        (name for name in ("annotation", "annotations", "tasks") if _is_long(payload.get(name))), None
    )
    if name is None:
        return [payload]
    parts = []
    for start in range(0, len(payload[name]), MOST_TOGETHER):
        some = payload[name][start : start + MOST_TOGETHER]
        part = {**payload, name: some}
        if isinstance(payload.get("task"), list):
            wanted = {one.get("task") for one in some}
            part["task"] = [task for task in payload["task"] if task.get("id") in wanted]
        parts.append(part)
    return parts


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > MOST_TOGETHER


def without_secrets(value: Any, depth: int = 0) -> Any:
    """JSON without fields that are named like secrets, and with URLs that nobody can open by having them."""
    if depth > _MOST_DEEP:
        return None
    if isinstance(value, Mapping):
        return {
            str(name): without_secrets(one, depth + 1)
            for name, one in value.items()
            if not _SECRET_NAME.search(str(name))
        }
    if isinstance(value, list):
        return [without_secrets(one, depth + 1) for one in value]
    # PostgreSQL takes no NUL in text.
    return url_without_secrets(value.replace("\0", "")) if isinstance(value, str) else value


def url_without_secrets(text: str) -> str:
    """An http(s) URL without user, password and signature; any other text as it is."""
    if not text.lower().startswith(("http://", "https://")):
        return text
    try:
        parts = urlsplit(text)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return text
    open_to_all = [(name, value) for name, value in query if not _opens(name, value)]
    host = parts.netloc.rpartition("@")[2]
    if host == parts.netloc and len(open_to_all) == len(query):
        return text  # to the letter
    return urlunsplit((parts.scheme, host, parts.path, urlencode(open_to_all), parts.fragment))


def _opens(name: str, value: str) -> bool:
    """Whether a parameter opens what the URL leads to. `key` is an API's key, or a path in a bucket."""
    is_key = name.lower() == "key" and not any(sign in value for sign in "/.")
    return is_key or _SIGNING.search(name) is not None


def _chosen(value: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    kept: dict[str, Any] = without_secrets({name: value[name] for name in fields if name in value})
    return kept
