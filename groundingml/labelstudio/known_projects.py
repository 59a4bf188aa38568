"""The projects this backend is connected to: their label configs, and the options of their connections.

/setup brings `extra_params`, /predict does not; but Label Studio sends a /setup before each /predict of a
batch, and whenever a task is opened. They are kept in the store, since the two may reach different processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from groundingml.store import Store
from groundingml.store.projects import projects, put_project
from groundingml.store.prompts import prompts
from groundingml.store.tables import Project


@dataclass(frozen=True)
class ProjectState:
    """What of a project's past matters for its next prediction."""

    extra_params: Any
    prompts: dict[str, str]
    """Remembered prompts, by control."""


class KnownProjects:
    """Notes projects and tells what is known of them. Safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def set(self, project: str, label_config: str, extra_params: Any) -> None:
        """Note how a project is set up now."""
        extra_params = extra_params or None
        with self._store.read() as session:
            row = session.get(Project, project)
            if row is not None and (row.label_config, row.extra_params) == (label_config, extra_params):
                return
        with self._store.begin() as session:
            put_project(session, project, label_config, extra_params)

    def state(self, project: str) -> ProjectState:
        """What is known of a project; nothing for one that was never set up."""
        with self._store.read() as session:
            row = session.get(Project, project)
            remembered = {prompt.control: prompt.text for prompt in prompts(session, project)}
            return ProjectState(row.extra_params if row is not None else None, remembered)

    def all(self) -> list[Project]:
        """All of them, the one set up last first."""
        with self._store.read() as session:
            return projects(session)
