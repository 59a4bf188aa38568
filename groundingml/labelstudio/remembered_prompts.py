"""The prompt last submitted with an annotation: the next tasks of the project come with its boxes too."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from groundingml.labelstudio.config_options import LabelConfigError, has_words
from groundingml.labelstudio.editor_actions import last_text
from groundingml.labelstudio.label_config import THRESHOLD_CONTROL, parse_label_config
from groundingml.labelstudio.prompts import MAX_PROMPT_CHARACTERS
from groundingml.store import Store, utc_now
from groundingml.store.prompts import Prompt, prompts, put_prompt
from groundingml.store.tables import Project


class RememberedPrompts:
    """Remembers, shows, changes and clears the prompts of projects. Safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, project: str) -> dict[str, str]:
        """A project's prompts: name of the prompt control -> text."""
        return {prompt.control: prompt.text for prompt in self.all(project)}

    def all(self, project: str | None = None) -> list[Prompt]:
        """The prompts of a project, or of all projects."""
        with self._store.read() as session:
            return prompts(session, project)

    def control_of(self, project: str) -> str:
        """The first control of a project that takes prompts, as it was last set up; "prompt" if unknown."""
        with self._store.read() as session:
            known = session.get(Project, project)
            names = _prompt_controls(known.label_config if known is not None else None)
        return next(iter(names or ()), "prompt")

    def set(self, project: str, control: str, text: str, at: datetime.datetime | None = None) -> None:
        """Remember a text from now on. One without a letter or digit, such as a dot, clears."""
        with self._store.begin() as session:
            put_prompt(session, project, control, _fit(text), at)

    def clear(self, project: str, control: str | None = None) -> list[Prompt]:
        """Forget the prompt of one control, or of all. What was forgotten."""
        with self._store.begin() as session:
            known = [p for p in prompts(session, project) if control in (None, p.control)]
            for prompt in known:
                put_prompt(session, project, prompt.control, "")
            return known


def learn_prompts(session: Session, project: str, annotation: Mapping[str, Any]) -> None:
    """Remember the prompts in a submitted annotation, as Label Studio sends it; of several, the last.

    An annotation without a prompt changes nothing, nor does one older than what is known.
    """
    if annotation.get("was_cancelled") is True:
        return
    regions = annotation.get("result")
    typed = {}
    for region in regions if isinstance(regions, list) else ():
        if not isinstance(region, dict) or region.get("type") != "textarea":
            continue
        name, value = region.get("from_name"), region.get("value")
        if isinstance(name, str) and name != THRESHOLD_CONTROL and isinstance(value, dict):
            typed[name] = last_text(value) or ""
    if not typed:
        return
    at = _time(annotation.get("updated_at"))
    known = session.get(Project, project)
    names = _prompt_controls(known.label_config if known is not None else None)
    for name, text in typed.items():
        if names is None or name in names:  # comments are text areas too
            put_prompt(session, project, name, _fit(text), at)


def _fit(text: str) -> str:
    """A text as it is kept; empty when there is nothing in it to look for."""
    text = text.replace("\x00", " ")[:MAX_PROMPT_CHARACTERS].strip()
    return text if has_words(text) else ""


def _prompt_controls(label_config: str | None) -> list[str] | None:
    if not label_config:
        return None
    try:
        return [control.name for control in parse_label_config(label_config).prompts]
    except LabelConfigError:
        return None


def _time(text: Any) -> datetime.datetime:
    """Label Studio's time; now for one that cannot be read."""
    try:
        time = datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return utc_now()
    return time if time.tzinfo is not None else time.replace(tzinfo=datetime.timezone.utc)
