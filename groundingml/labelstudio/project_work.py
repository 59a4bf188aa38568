"""What labelling a project means now: its config, connection, model, version and remembered prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from groundingml.labelstudio.api_client import LabelStudioApi
from groundingml.labelstudio.label_config import LabelConfig, parse_label_config
from groundingml.labelstudio.model_pool import ServedModel
from groundingml.labelstudio.project_labelling import Work
from groundingml.labelstudio.versions import model_version, prompts_of


@dataclass(frozen=True)
class ProjectNow:
    """A project as Label Studio describes it at the moment."""

    project: int
    about: dict[str, Any]
    connections: Sequence[dict[str, Any]]
    config: LabelConfig

    def work(
        self,
        model: ServedModel,
        *,
        filters: Sequence[dict[str, Any]] = (),
        only_missing: bool = False,
        batch: int = 50,
        prompts: Mapping[str, str] = MappingProxyType({}),
    ) -> Work:
        """What to label with ``model``, under the version that the backend would answer with."""
        version = model_version(model.digest, self.config, prompts)
        remembered = prompts_of(self.config, prompts)
        return Work(self.project, self.config, model, version, filters, only_missing, batch, remembered)

    def shows(self, version: str) -> bool:
        """Whether annotators see predictions of ``version`` when they open a task."""
        # A project that shows a connection by its title shows what that answers now.
        same = {one["title"] for one in self.connections if one.get("model_version") == version}
        return self.about.get("model_version") in ("", None, version, *same)


def project_now(api: LabelStudioApi, project: int) -> ProjectNow:
    """Ask Label Studio about a project.

    Raises:
        ApiError: it cannot be asked, or there is no such project.
        LabelConfigError: nothing can be predicted for its label config.
    """
    about = api.project(project)
    connections = api.backends(project)
    # The connection's options are part of what the backend is asked, and of its version.
    extra_params = connections[-1]["extra_params"] if connections else None
    return ProjectNow(project, about, connections, parse_label_config(about["label_config"], extra_params))
