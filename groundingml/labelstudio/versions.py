"""The version string of predictions.

Label Studio skips tasks that already have a prediction of the version that /setup returned. So the string
changes exactly when predictions may: with the checkpoint, and with what a project's label config asks for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from groundingml.labelstudio.label_config import LabelConfig

MAX_REMEMBERED = 200


def model_version(checkpoint_digest: str, config: LabelConfig) -> str:
    """``<checkpoint digest>-<prompt digest>`` for predictions of ``checkpoint_digest`` under ``config``."""
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
    asked = {"controls": controls, "options": dataclasses.asdict(config.options)}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return f"{checkpoint_digest}-{digest[:12]}"


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


class ConnectionParams:
    """The `extra_params` of each project's connection.

    /setup brings them, /predict does not; but Label Studio sends a /setup before each /predict of a batch,
    and whenever a task is opened.
    """

    def __init__(self) -> None:
        self._newest_last: dict[str, Any] = {}

    def set(self, project: object, extra_params: Any) -> None:
        """Remember them for a project, as it is named in requests."""
        self._newest_last.pop(str(project), None)
        if extra_params is not None and extra_params != "":
            self._newest_last[str(project)] = extra_params
        while len(self._newest_last) > MAX_REMEMBERED:
            del self._newest_last[next(iter(self._newest_last))]

    def of(self, project: object) -> Any:
        """What was remembered; None for nothing."""
        return self._newest_last.get(str(project))
