"""The version string of predictions.

Label Studio skips tasks that already have a prediction of the version that /setup returned. So the string
changes exactly when predictions may: with the checkpoint, and with what a project's label config asks for.
"""

from __future__ import annotations

import hashlib
import json

from groundingml.labelstudio.label_config import LabelConfig

MAX_REMEMBERED = 200


def model_version(checkpoint_digest: str, config: LabelConfig) -> str:
    """``<checkpoint digest>-<prompt digest>`` for predictions of ``checkpoint_digest`` under ``config``."""
    asked = [
        {
            "control": control.name,
            "image": [control.image.name, control.image.key],
            "threshold": control.threshold,
            "labels": [[label.name, list(label.prompts)] for label in control.labels],
            "labels_key": control.labels_key,
        }
        for control in config.controls
    ]
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
