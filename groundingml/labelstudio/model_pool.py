"""Which detector answers for which project: the base model, or a version trained for the project.

Models are loaded in the background and put into service in one step. A request keeps the model it began with,
so a switch loses no request and mixes no versions in one answer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from groundingml.inference import ObjectDetector, Thresholds

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed"]
MOST_VERSIONS = 3
"""Trained versions that stay loaded, beside the base model; those used longest ago are loaded again when
asked."""


class ModelNotReady(RuntimeError):
    """A model is still loading, or could not be loaded. The message says which."""


@dataclass(frozen=True)
class ServedModel:
    """A loaded model. ``detectors`` holds one for each device; they give the same answers."""

    source: str
    digest: str
    detectors: tuple[ObjectDetector, ...]

    @property
    def thresholds(self) -> Thresholds:
        """The least scores of labels for which the question sets none."""
        return self.detectors[0].thresholds


@dataclass(frozen=True)
class ModelStatus:
    """What there is to say about one model: for the status page."""

    source: str
    digest: str | None
    state: State
    projects: tuple[str, ...]
    """Those it answers for; empty for the base model, which answers for all others."""


@dataclass
class _Slot:
    source: str
    digest: str | None = None
    loaded: concurrent.futures.Future[ServedModel] = field(default_factory=concurrent.futures.Future)

    @property
    def state(self) -> State:
        if not self.loaded.done():
            return "loading"
        return "ready" if self.loaded.exception() is None else "failed"


class ModelPool:
    """The loaded models, and which of them serves each project. Safe to use from several threads.

    Args:
        base: source of the model for projects without a version of their own.
        device: where models run; several separated by commas ("cuda:0,cuda:1") get a copy each.
        detector: the base model, when it is loaded already.
        most_versions: how many trained versions stay loaded.
        allow_cloud: whether images may leave this machine, for models ``api:...``.
    """

    def __init__(
        self,
        base: str,
        device: str = "auto",
        detector: ObjectDetector | None = None,
        *,
        most_versions: int = MOST_VERSIONS,
        allow_cloud: bool = False,
    ) -> None:
        self._allow_cloud = allow_cloud
        self.base = base
        self.devices = tuple(part.strip() for part in device.split(",") if part.strip()) or ("auto",)
        self._most_versions = most_versions
        self._lock = threading.RLock()
        self._load_turn = threading.Lock()
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._digests: dict[str, str] = {}
        self._wanted: dict[str, str] = {}
        self._serving: dict[str, str] = {}
        if detector is not None:
            self.devices = (str(detector.device),)
            slot = _Slot(base, detector.checkpoint_digest or detector.name)
            slot.loaded.set_result(ServedModel(base, str(slot.digest), (detector,)))
            self._slots[base] = slot
            self._digests[base] = str(slot.digest)

    def start(self) -> None:
        """Begin to load the base model, once. Returns at once."""
        self._slot(self.base)

    def use(
        self, project: str, source: str | None, *, at_once: bool = False
    ) -> concurrent.futures.Future[ServedModel]:
        """Let ``source`` (a version folder; None for the base model) serve a project as soon as it is loaded.

        Until then, and when it cannot be loaded, the project is served as before. A later call for the same
        project takes precedence. Returns at once; the future is of the loaded model, or its exception.

        Args:
            project: Label Studio's id of it, as text.
            at_once: requests wait for it instead of being served as before: for versions that were in service
                already when this process started.
        """
        wanted = source or self.base
        with self._lock:
            self._wanted[project] = wanted
            if at_once:
                self._serving[project] = wanted
            slot = self._slot(wanted)
        slot.loaded.add_done_callback(lambda loaded: self._switch(project, wanted, loaded))
        return slot.loaded

    def source_of(self, project: str | None) -> str:
        """The source of the model that serves a project now."""
        with self._lock:
            return self._serving.get(project or "", self.base)

    def checkpoint_digest(self, project: str | None = None) -> str | None:
        """Digest of the model that serves a project now: known a little before the model is loaded, since its
        file is hashed first, and still known when it has been unloaded."""
        with self._lock:
            return self._digests.get(self.source_of(project))

    def state(self, project: str | None = None) -> State:
        """Whether there is a model to predict with."""
        with self._lock:
            slot = self._slots.get(self.source_of(project))
            return slot.state if slot is not None else "loading"

    @property
    def places(self) -> tuple[str, ...]:
        """The devices in use; what was asked for until the base model is loaded."""
        if self.state() != "ready":
            return self.devices
        return tuple(str(detector.device) for detector in self._slots[self.base].loaded.result().detectors)

    def models(self) -> Sequence[ModelStatus]:
        """The base model and every version that serves, or is being loaded, in order of use."""
        with self._lock:
            projects: dict[str, list[str]] = {}
            for project, source in self._serving.items():
                projects.setdefault(source, []).append(project)
            sources = [self.base, *(s for s in (*self._slots, *projects) if s != self.base)]
            return [
                ModelStatus(
                    source,
                    self._digests.get(source),
                    self._slots[source].state if source in self._slots else "loading",
                    tuple(sorted(projects.get(source, ()))) if source != self.base else (),
                )
                for source in dict.fromkeys(sources)
            ]

    async def ready(self, timeout: float, project: str | None = None) -> ServedModel:
        """The model that serves a project, as soon as it is there. Keep it for the whole request.

        Raises:
            ModelNotReady: when it is not there within ``timeout`` seconds, or will never be.
        """
        loaded = self._slot(self.source_of(project)).loaded
        if not loaded.done():
            waiting = asyncio.wrap_future(loaded)
            waiting.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # else asyncio complains
            await asyncio.wait([waiting], timeout=timeout)
        if not loaded.done():
            raise ModelNotReady("The model is still loading; try again in a moment.")
        if loaded.exception() is not None:
            raise ModelNotReady("The model could not be loaded; the server's log says why.")
        return loaded.result()

    def _slot(self, source: str) -> _Slot:
        """The slot of a source, moved to the newest end; one that is not there begins to load."""
        with self._lock:
            slot = self._slots.get(source)
            if slot is None or (slot.state == "failed" and source != self.base):
                slot = self._slots[source] = _Slot(source, self._digests.get(source))
                threading.Thread(target=self._load, args=(slot,), name="model loader", daemon=True).start()
            self._slots.move_to_end(source)
            return slot

    def _switch(self, project: str, wanted: str, loaded: concurrent.futures.Future[ServedModel]) -> None:
        if loaded.exception() is not None:
            return
        with self._lock:
            if self._wanted.get(project) != wanted or self._serving.get(project, self.base) == wanted:
                return
            self._serving[project] = wanted
            self._drop_oldest()
        logger.info("Project %s is served by %s (%s)", project, _shown(wanted), loaded.result().digest)

    def _drop_oldest(self) -> None:
        """Forget the models used longest ago; requests that hold one finish with it."""
        in_use = set(self._serving.values())
        for slot in [s for s in self._slots.values() if s.state == "failed" and s.source not in in_use]:
            if slot.source != self.base:
                del self._slots[slot.source]
        versions = [s for s in self._slots.values() if s.source != self.base and s.state == "ready"]
        for slot in versions[: max(0, len(versions) - self._most_versions)]:
            del self._slots[slot.source]
            logger.info("Unloaded %s", _shown(slot.source))

    def _load(self, slot: _Slot) -> None:
        try:
            from groundingml.inference import load_detector, source_digest

            slot.digest = source_digest(slot.source)
            with self._lock:
                self._digests[slot.source] = slot.digest
            with self._load_turn:  # one at a time, since loading takes twice a model's memory
                detectors = tuple(
                    load_detector(slot.source, device, allow_cloud=self._allow_cloud)
                    for device in self.devices
                )
            digest = detectors[0].checkpoint_digest
            with self._lock:
                slot.digest = self._digests[slot.source] = digest
            places = ", ".join(str(detector.device) for detector in detectors)
            logger.info("The model %s is ready on %s", _shown(slot.source), places)
            slot.loaded.set_result(ServedModel(slot.source, digest, detectors))
        except Exception as error:
            logger.exception("The model %s could not be loaded", _shown(slot.source))
            slot.loaded.set_exception(error)
        with self._lock:
            self._drop_oldest()


def _shown(source: str) -> str:
    """A source as it is named in the log: of a folder or file its last two names."""
    return "/".join(Path(source).parts[-2:]) if Path(source).is_absolute() else source
