"""One training run of a project, from what people corrected to a version that serves or is kept with the
reason.

Read `ProjectRun.__call__` from top to bottom. Every step can be interrupted at any moment, also by kill -9:
what is kept between steps is written whole, so that the same run, begun again, goes on.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from groundingml.inference import Detector, ImageError, Label, load_image
from groundingml.learning.examples import TaskExample, annotations_of
from groundingml.learning.fitting import fit_thresholds, thresholds_file
from groundingml.learning.lease import RunLease, RunStopped
from groundingml.learning.measuring import Measurement, as_json, measure
from groundingml.learning.promotion import Decision, PromotionRule, Scores, decide
from groundingml.learning.report import write_report
from groundingml.learning.retention import everyday_retention, read_retention
from groundingml.learning.snapshot import Snapshot, read_snapshot, take_snapshot, write_snapshot
from groundingml.learning.splits import HOLDOUT_SHARE, check_enough
from groundingml.learning.teaching import Lesson, teach
from groundingml.learning.versions import VersionFolder, drafting, open_version, remove_version, to_prune
from groundingml.store import Store, utc_now
from groundingml.store.runs import end_run
from groundingml.store.tables import Run, Version
from groundingml.store.versions import (
    add_version,
    promote_version,
    reject_version,
    serving_version,
    version_with_digest,
    versions_of,
)
from groundingml.training import Annotations, StepReport

logger = logging.getLogger(__name__)


class ProjectSource(Protocol):
    """Where a project's annotations and images come from."""

    def synchronise(self) -> None:
        """Bring the store up to date with what annotators have done."""

    def labels(self) -> list[Label]:
        """What the project asks for."""

    def fetch(self, reference: str) -> bytes:
        """An image's encoded bytes. Raises ValueError or OSError with the reason."""


@dataclass(frozen=True)
class RunOptions:
    """What a run is told, kept in the store with it.

    base: the model that learns. retention: ANNOTATIONS.json:FOLDER, or None for the photos of the package.
    promote: False keeps a better version as a candidate. keep: so many old versions stay on the disk.
    recipe_options: fields of the recipe that differ from its defaults. keep_images: keep the images read for
    it.
    """

    base: str = "nano"
    device: str = "auto"
    retention: str | None = None
    least_gain: float = 0.01
    most_forgotten: float = 0.2
    holdout_share: float = HOLDOUT_SHARE
    promote: bool = True
    keep: int = 5
    keep_images: bool = False
    threads: int | None = None
    recipe_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        PromotionRule(self.least_gain, self.most_forgotten)
        if not 0 < self.holdout_share < 1:
            raise ValueError(f"holdout_share must lie between 0 and 1, got {self.holdout_share}")
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")

    @property
    def rule(self) -> PromotionRule:
        return PromotionRule(self.least_gain, self.most_forgotten)


@dataclass(frozen=True)
class _Data:
    """A run's images with their boxes. labels: name -> what to ask for."""

    labels: list[Label]
    train: Annotations
    holdout: Annotations
    retention: Annotations | None
    retention_labels: list[Label]
    corrections: int


class ProjectRun:
    """A claimed run and all it needs. Call it once."""

    def __init__(
        self, store: Store, data_dir: Path, run: Run, source: ProjectSource, lease: RunLease
    ) -> None:
        assert run.project is not None
        assert run.folder is not None
        self.store = store
        self.data_dir = data_dir
        self.run_id = run.id
        self.project = run.project
        self.recipe = run.recipe
        self.options = RunOptions(**run.options)
        self.folder = data_dir / run.folder
        self.source = source
        self.lease = lease

    def __call__(self) -> str:
        """Do it; how it ended, in words.

        Raises:
            RunStopped: it was interrupted. ValueError, OSError and others: it failed; the message says why.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        snapshot = self._snapshot()
        base = Detector.from_pretrained(self.options.base, device=self.options.device)
        data = self._data(snapshot, base)
        serving, before = self._measure_serving(data, base)
        trained = self._train(data)
        target = self.data_dir / "versions" / _safe(self.project) / f"run-{self.run_id}"
        with drafting(target) as draft:
            shutil.copytree(trained, draft.path, dirs_exist_ok=True)
            taught = Detector.from_pretrained(draft.path, device=self.options.device)
            after = self._measure(taught, data, "measuring the new version")
            fitted = fit_thresholds(after.holdout.results, taught.default_threshold)
            thresholds = thresholds_file(fitted, taught.default_threshold)
            numbers = {"before": before.numbers(), "after": after.numbers()}
            draft.write("thresholds.json", thresholds)
            draft.write("metrics.json", numbers)
            draft.write("provenance.json", self._provenance(data, serving))
            self.lease.check()
            folder = draft.finish()
        decision = decide(before.scores(), after.scores(), self.options.rule)
        message = self._conclude(folder, serving, decision, numbers, thresholds)
        self._report(folder, after.holdout)
        self._tidy()
        return message

    # The steps, in the order in which they are taken.

    def _snapshot(self) -> Snapshot:
        """This run's examples: taken once, at its beginning."""
        path = self.folder / "snapshot.json"
        if not path.is_file():
            self.lease.report("reading the annotations")
            self.source.synchronise()
            labels = self.source.labels()
            share = self.options.holdout_share
            write_snapshot(take_snapshot(self.store, self.project, labels, share), path)
        snapshot = read_snapshot(path)
        for problem in snapshot.problems:
            logger.warning("Left out: %s", problem)
        return snapshot

    def _data(self, snapshot: Snapshot, base: Detector) -> _Data:
        """The examples with their images, parted, and what must not be forgotten."""
        check_enough(snapshot.splits)
        names = [label.name for label in snapshot.labels]
        read: list[tuple[TaskExample, Path, tuple[int, int]]] = []
        failures: list[str] = []
        for number, example in enumerate(snapshot.examples, start=1):
            try:
                read.append((example, *self._image(example.reference)))
            except (ValueError, OSError) as error:
                failures.append(f"task {example.task}: {error}")
                logger.warning("Left out: %s", failures[-1])
            self.lease.report("reading images", number, len(snapshot.examples), left_out=len(failures))
        splits = {example.task: snapshot.splits[example.task] for example, _, _ in read}
        if failures and len(failures) * 2 > len(snapshot.examples):
            raise ValueError(
                f"{len(failures)} of {len(snapshot.examples)} images could not be read; the first: "
                f"{failures[0]}"
            )
        check_enough(splits)
        train = annotations_of([one for one in read if splits[one[0].task] == "train"], names)
        holdout = annotations_of([one for one in read if splits[one[0].task] == "holdout"], names)
        for part, records in (("trained on", train.records), ("held out", holdout.records)):
            if not any(record.boxes_xyxy for record in records):
                raise ValueError(
                    f"not one of the {len(records)} images that are {part} has a box: correct some more"
                )
        retention = (
            read_retention(self.options.retention)
            if self.options.retention
            else everyday_retention(base, {label.name.lower() for label in snapshot.labels})
        )
        asked = [Label(name) for name in retention.names]
        has_boxes = any(record.boxes_xyxy for record in retention.records)
        return _Data(
            snapshot.labels, train, holdout, retention if has_boxes else None, asked, snapshot.corrections
        )

    def _measure_serving(self, data: _Data, base: Detector) -> tuple[int | None, _Measured]:
        """The version that serves now (None: the base model), and how good it is."""
        with self.store.read() as session:
            serving = serving_version(session, self.project)
        if serving is None:
            return None, self._measure(base, data, "measuring the present model")
        path = open_version(self.data_dir / serving.folder).path
        detector = Detector.from_pretrained(path, device=self.options.device)
        return serving.id, self._measure(detector, data, "measuring the present version")

    def _measure(self, detector: Detector, data: _Data, phase: str) -> _Measured:
        kept = data.retention
        total = len(data.holdout.records) + (len(kept.records) if kept else 0)
        holdout = measure(detector, data.holdout, data.labels, self._counting(phase, total))
        retention = None
        if kept is not None:
            offset = len(data.holdout.records)
            retention = measure(detector, kept, data.retention_labels, self._counting(phase, total, offset))
        return _Measured(holdout, retention)

    def _train(self, data: _Data) -> Path:
        """The taught model's folder."""

        def step(report: StepReport) -> None:
            self.lease.report(
                "training",
                report.step,
                report.total_steps,
                epoch=round(report.epoch, 2),
                loss=round(report.loss, 4),
            )

        lesson = Lesson(
            examples=data.train,
            labels=data.labels,
            base=self.options.base,
            recipe=self.recipe,
            options=self.options.recipe_options,
            device=self.options.device,
        )
        folder = self.folder / "training"
        trained = teach(lesson, folder, step, lambda: self.lease.reason is not None)
        if trained is None:
            self.lease.check()
            raise RunStopped("stop")
        return trained

    def _provenance(self, data: _Data, serving: int | None) -> dict[str, Any]:
        import groundingml

        return {
            "project": self.project,
            "run": self.run_id,
            "base": self.options.base,
            "parent": serving,
            "recipe": self.recipe,
            "recipe_options": self.options.recipe_options,
            "labels": {label.name: list(label.texts) for label in data.labels},
            "images": {"train": len(data.train.records), "holdout": len(data.holdout.records)},
            "corrections": data.corrections,
            "made_at": utc_now().isoformat(timespec="seconds"),
            "groundingml": groundingml.__version__,
        }

    def _conclude(
        self,
        folder: VersionFolder,
        serving: int | None,
        decision: Decision,
        numbers: dict[str, Any],
        thresholds: dict[str, Any],
    ) -> str:
        """Note the version, its fate and the end of the run, all in one transaction."""
        with self.store.begin() as session:
            run = session.get(Run, self.run_id)
            if run is None or (run.pid, run.attempts) != (self.lease.owner.pid, self.lease.attempt):
                raise RunStopped("lost")
            known = version_with_digest(session, self.project, folder.digest)
            if known is not None and known.run_id != self.run_id:
                message = f"nothing new was learned: the result is version {known.id} again"
                end_run(session, run, "done", message)
                remove_version(folder.path)
                return message
            version = known or add_version(
                session,
                project=self.project,
                digest=folder.digest,
                folder=str(folder.path.relative_to(self.data_dir)),
                run_id=self.run_id,
                metrics=numbers,
                thresholds=thresholds,
            )
            now = serving_version(session, self.project)
            if not decision.promote:
                reject_version(version, decision.reason)
                message = f"version {version.id} {decision.reason}"
            elif not self.options.promote:
                version.reason = "a candidate, as asked: " + decision.reason.removeprefix("promoted: ")
                message = f"version {version.id} is {version.reason}"
            elif (None if now is None else now.id) != serving:
                version.reason = "a candidate: the version it was compared with has been replaced"
                message = f"version {version.id} is {version.reason}"
            else:
                promote_version(session, version, decision.reason)
                message = f"version {version.id} {decision.reason}"
            end_run(session, run, "done", message)
        return message

    def _report(self, folder: VersionFolder, holdout: Measurement) -> None:
        """Pictures of the held-out images, for people; a run does not fail for them."""
        try:
            thresholds = Detector.from_pretrained(folder.path, device="cpu").thresholds
            write_report(holdout, thresholds, self.folder / "report")
        except (ImportError, OSError, ValueError) as error:
            logger.warning("No pictures of the held-out images: %s", error)

    def _tidy(self) -> None:
        """Remove what only an unfinished run needs, and the oldest versions."""
        shutil.rmtree(self.folder / "training", ignore_errors=True)
        if not self.options.keep_images:
            shutil.rmtree(self.folder / "images", ignore_errors=True)
        prune(self.store, self.data_dir, self.project, self.options.keep)

    def _image(self, reference: str) -> tuple[Path, tuple[int, int]]:
        """An image's file and size; read from where it is, unless an earlier attempt of this run has."""
        path = self.folder / "images" / hashlib.sha256(reference.encode()).hexdigest()[:32]
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(self.source.fetch(reference))
            partial.replace(path)
        try:
            return path, load_image(path).size
        except ImageError as error:
            path.unlink()
            raise ValueError(error.reason) from error

    def _counting(self, phase: str, total: int, offset: int = 0) -> Callable[[int], None]:
        return lambda done: self.lease.report(phase, offset + done, total)


@dataclass(frozen=True)
class _Measured:
    holdout: Measurement
    retention: Measurement | None

    def scores(self) -> Scores:
        kept = self.retention
        return Scores(self.holdout.evaluation.map50, None if kept is None else kept.evaluation.map50)

    def numbers(self) -> dict[str, Any]:
        return {
            "holdout": as_json(self.holdout.evaluation),
            "retention": None if self.retention is None else as_json(self.retention.evaluation),
        }


def prune(store: Store, data_dir: Path, project: str, keep: int) -> list[Version]:
    """Remove the folders of old versions that neither serve nor are needed for a rollback; those versions."""
    with store.begin() as session:
        versions = [version for version in versions_of(session, project) if version.folder]
        serving = serving_version(session, project)
        parents = {version.id: version.parent_id for version in versions}
        doomed = to_prune(list(parents), parents, None if serving is None else serving.id, keep)
        removed = [(version, version.folder) for version in versions if version.id in doomed]
        for version, _ in removed:
            version.folder = ""
    for _, folder in removed:
        remove_version(data_dir / folder)
    return [version for version, _ in removed]


def _safe(project: str) -> str:
    """A folder's name for a project, whatever its id."""
    if project.isalnum():
        return project
    return hashlib.sha256(project.encode()).hexdigest()[:16]
