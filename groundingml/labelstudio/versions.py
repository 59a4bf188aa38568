"""The version string of predictions.

Label Studio skips tasks that already have a prediction of the version that /setup returned. So the string
changes exactly when predictions may: with the checkpoint, and with what a project's label config asks for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from groundingml.labelstudio.label_config import LabelConfig

MAX_REMEMBERED = 200


def model_version(
    checkpoint_digest: str, config: LabelConfig, prompts: Mapping[str, str] = MappingProxyType({})
) -> str:
    """``<checkpoint digest>-<prompt digest>`` for predictions of ``checkpoint_digest`` under ``config``, with
    the remembered ``prompts`` (name of a prompt control -> text)."""
    controls = [
        {
            "control": control.name,
            "image": [control.image.name, control.image.key],
            "threshold": control.threshold,
            "rectangle": control.rectangle,
            "negative_prompts": control.negative_prompts,
            "labels": [
                [label.name, label.prompts, label.threshold, label.negative_prompts]
                for label in control.labels
                if label.is_searched
            ],
            "labels_key": control.labels_key,
        }
        for control in config.controls
    ]
    asked: dict[str, Any] = {"controls": controls, "options": dataclasses.asdict(config.options)}
    remembered = prompts_of(config, prompts)
    if remembered:
        asked["prompts"] = remembered
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return f"{checkpoint_digest}-{digest[:12]}"


def prompts_of(config: LabelConfig, prompts: Mapping[str, str]) -> dict[str, str]:
    """Those of the remembered prompts that ``config`` has a control for, whose image has boxes."""
    return {
        control.name: prompts[control.name]
        for control in config.prompts
        if control.name in prompts and control.image in config.images
    }


class ServedVersions:
    """The versions this process has answered with, newest first."""

    def __init__(self) -> None:
        self._newest_last: dict[str, None] = {}

    def add(self, version: str) -> None:
        """Remember ``version`` as the newest."""
        self._newest_last.pop(version, None)
        self._newest_last[version] = None
        while len(self._newest_last) > MAX_REMEMBERED:
            del self._newest_last[next(iter(self._newest_last))]

    def newest_first(self) -> list[str]:
        """All remembered versions."""
        return list(reversed(self._newest_last))
