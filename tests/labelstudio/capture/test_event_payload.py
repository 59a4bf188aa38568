"""No secret of a webhook's body is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from groundingml.labelstudio.event_payload import payload_of, project_of, url_without_secrets, without_secrets


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://h/a.jpg", "https://h/a.jpg"),
        ("https://h/a%20b.jpg?v=1&w=%2F#x", "https://h/a%20b.jpg?v=1&w=%2F#x"),
        ("https://ann:hunter2@h:8080/a.jpg", "https://h:8080/a.jpg"),
        ("https://h/a.jpg?X-Amz-Signature=abc&X-Amz-Credential=def&v=1", "https://h/a.jpg?v=1"),
        ("https://h/a.jpg?sv=2024&sig=abc%3D&sp=r", "https://h/a.jpg?sv=2024&sp=r"),
        (
            "https://h/a.jpg?GoogleAccessId=x&Expires=1&Signature=abc",
            "https://h/a.jpg?GoogleAccessId=x&Expires=1",
        ),
        ("HTTPS://h/a.jpg?access_token=abc", "https://h/a.jpg"),
        ("https://h/map?key=AIzaSyD", "https://h/map"),
        ("https://h/get?key=photos/cat.jpg", "https://h/get?key=photos/cat.jpg"),
        ("/data/upload/7/a.jpg?token=x", "/data/upload/7/a.jpg?token=x"),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("http://[broken", "http://[broken"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
    ],
)
def test_urls(url: str, kept: str) -> None:
    assert url_without_secrets(url) == kept


def test_only_what_corrections_need_is_kept() -> None:
    secret = "hunter2"
    body = {
        "action": "ANNOTATION_CREATED",
        "annotation": {
            "id": 1,
            "result": [{"id": "a", "value": {"x": 1}}],
            "unique_id": "u",
            "api_key": secret,
        },
        "task": {
            "id": 2,
            "data": {
                "image": f"https://ann:{secret}@h/a.jpg",
                "db_password": secret,
                "more": [{"Authorization": secret, "text": "a cat"}],
            },
            "file_upload": 3,
        },
        "project": {"id": 7, "title": "cats", "token": secret, "task_data_password": secret, "color": "#fff"},
        "hostname": secret,
    }
    assert payload_of(body) == {
        "annotation": {"id": 1, "result": [{"id": "a", "value": {"x": 1}}]},
        "task": {"id": 2, "data": {"image": "https://h/a.jpg", "more": [{"text": "a cat"}]}},
        "project": {"id": 7, "title": "cats"},
    }
    assert secret not in json.dumps(payload_of(body))


def test_depth_and_nul() -> None:
    deep: Any = "a\0b"
    for _ in range(5000):
        deep = [deep]
    assert json.dumps(without_secrets(deep)).count("[") < 100
    assert without_secrets({"a": "x\0y"}) == {"a": "xy"}


@pytest.mark.parametrize(
    ("project", "number"),
    [
        ({"id": 7}, "7"),
        (7, "7"),
        ("7.1795417412", "7"),
        (True, None),
        ({"id": None}, None),
        (None, None),
        ("", None),
    ],
)
def test_the_project(project: Any, number: str | None) -> None:
    assert project_of({"project": project}) == number
