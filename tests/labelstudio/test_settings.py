"""Settings that cannot work are refused when they are made."""

from __future__ import annotations

from typing import Any

import pytest

from groundingml.labelstudio import Settings, SettingsError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_studio_api_key": "x"}, "without Label Studio's URL"),
        ({"label_studio_url": "localhost:8080"}, "must look like http://localhost:8080"),
        ({"label_studio_url": "http://h:x"}, "must look like"),
        ({"label_studio_url": "http://a:b@h"}, "must not hold a user name"),
        ({"label_studio_url": "http://h/?q=1"}, "no '\\?'"),
        ({"basic_auth_user": "a"}, "both a user name and a password"),
        ({"basic_auth_password": "a"}, "both a user name and a password"),
        ({"basic_auth_user": "a:b", "basic_auth_password": "c"}, "without ':'"),
        ({"allow_hosts": ("http://nas",)}, "neither HOST nor HOST:PORT"),
        ({"allow_hosts": ("nas:x",)}, "neither HOST nor HOST:PORT"),
        ({"allow_hosts": ("",)}, "neither HOST nor HOST:PORT"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**settings)


def test_settings_do_not_show_secrets() -> None:
    shown = repr(
        Settings(
            label_studio_url="http://h",
            label_studio_api_key="s3cret",
            basic_auth_user="u",
            basic_auth_password="s3cret",
        )
    )
    assert "s3cret" not in shown
