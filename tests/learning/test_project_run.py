"""A whole run in its own process, with a tiny network and images made here."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from groundingml.inference import Detector
from groundingml.learning.process import start_process
from groundingml.learning.project_run import RunOptions, prune
from groundingml.learning.versions import open_version, process_lives
from groundingml.models.checkpoints.save import save_pretrained
from groundingml.models.grounding_dino import GroundingDino
from groundingml.store import Store, open_store
from groundingml.store.runs import cancel_run, enqueue_run
from groundingml.store.tables import Annotation, Run, Task, Version
from groundingml.store.versions import add_version, promote_version, serving_version, versions_of

PROGRAM = Path(__file__).with_name("local_project.py")
DEADLINE_S = 120


class Project:
    """A data folder with a store, annotated tasks and a tiny base model."""

    def __init__(self, folder: Path, model: GroundingDino) -> None:
        self.data_dir = folder / "data"
        self.url = f"sqlite:///{self.data_dir / 'store.sqlite3'}"
        self.store: Store = open_store(self.url)
        self.base = folder / "base"
        save_pretrained(model, self.base)
        self.photos = folder / "photos"
        self.photos.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []

    def annotate(self, count: int, first: int = 0) -> None:
        rng = random.Random(first)
        with self.store.begin() as session:
            for number in range(first, first + count):
                x, y = rng.randint(5, 50), rng.randint(5, 30)
                path = self.photos / f"{number}.png"
                image = Image.effect_noise((96, 64), 40).convert("RGB")
                ImageDraw.Draw(image).rectangle((x, y, x + 30, y + 24), fill="red")
                image.save(path)
                value = {"x": x / 0.96, "y": y / 0.64, "width": 30 / 0.96, "height": 24 / 0.64}
                region = {
                    "id": f"r{number}",
                    "type": "rectanglelabels",
                    "from_name": "label",
                    "to_name": "image",
                    "value": {**value, "rectanglelabels": ["square"]},
                }
                session.add(Task(project="7", task=str(number), images={"image": str(path)}))
                session.add(
                    Annotation(
                        annotation_id=str(number),
                        project="7",
                        task=str(number),
                        state="accepted",
                        result=[region],
                        digest="",
                    )
                )

    def request(self, **options: Any) -> int:
        recipe = {"epochs": 2, "denoising": None, "checkpoint_steps": 2, **options.pop("recipe_options", {})}
        told = RunOptions(base=str(self.base), device="cpu", recipe_options=recipe, **options)
        with self.store.begin() as session:
            return enqueue_run(session, "7", "command", asdict(told), "full").id

    def start(self, run: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(PROGRAM), self.url, str(self.data_dir), str(run)]
        self.processes.append(start_process(command, self.data_dir / "runs" / str(run), {}, threads=1))
        return self.processes[-1]

    def run(self, run: int) -> Run:
        with self.store.read() as session:
            found = session.get(Run, run)
            assert found is not None
            return found

    def wait(self, until: Callable[[], object], what: str, run: int) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not until():
            assert time.monotonic() < deadline, f"{what}:\n{self.log(run)}"
            time.sleep(0.05)

    def finish(self, run: int) -> Run:
        self.start(run).wait(DEADLINE_S)
        return self.run(run)

    def log(self, run: int) -> str:
        return (self.data_dir / "runs" / str(run) / "log.txt").read_text()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.store.close()


@pytest.fixture
def project(tmp_path: Path, tiny_model: GroundingDino) -> Iterator[Project]:
    made = Project(tmp_path, tiny_model)
    yield made
    made.close()


def only_version(project: Project) -> Version:
    with project.store.read() as session:
        (version,) = versions_of(session, "7")
        return version


def test_a_run_leaves_a_measured_version_that_does_not_serve_unless_better(project: Project) -> None:
    project.annotate(8)
    (project.photos / "5.png").write_bytes(b"no image")
    run = project.finish(project.request())
    assert run.state == "done", project.log(run.id)
    version = only_version(project)
    assert version.state == "rejected"  # two epochs teach this network nothing
    assert run.message == f"version {version.id} {version.reason}"
    assert "held-out mAP50" in (version.reason or "")
    assert version.run_id == run.id

    folder = open_version(project.data_dir / version.folder)
    assert (
        folder.digest
        == version.digest
        == Detector.from_pretrained(folder.path, device="cpu").checkpoint_digest
    )
    numbers = folder.read("metrics.json")
    assert set(numbers) == {"before", "after"}
    assert numbers["after"]["holdout"]["labels"]["square"]["boxes"] >= 2
    told = folder.read("provenance.json")
    assert (told["run"], told["parent"], told["labels"]["disc"]) == (run.id, None, ["red disc", "disc"])
    assert told["images"]["train"] + told["images"]["holdout"] == 7
    assert "task 5: not an image" in project.log(run.id)

    with project.store.read() as session:
        assert {task.split for task in session.query(Task)} == {"train", "holdout"}
    left = {path.name for path in (project.data_dir / "runs" / str(run.id)).iterdir()}
    assert "images" not in left and "training" not in left  # noqa: PT018
    assert {"log.txt", "snapshot.json"} <= left


def test_too_few_corrections_are_said(project: Project) -> None:
    project.annotate(3)
    run = project.finish(project.request())
    assert run.state == "failed"
    assert "3 corrected tasks with a picture: too few to train" in (run.message or "")
    with project.store.read() as session:
        assert versions_of(session) == []


def test_a_killed_run_goes_on_from_its_checkpoint(project: Project) -> None:
    project.annotate(8)
    run = project.request(recipe_options={"epochs": 15})
    first = project.start(run)
    last = project.data_dir / "runs" / str(run) / "training" / "last.pt"
    project.wait(last.is_file, "no checkpoint", run)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    seen = project.run(run)
    assert (seen.state, seen.pid) == ("running", first.pid)
    project.annotate(4, first=8)  # for the next run: this one goes on with what it began with

    done = project.finish(run)
    assert (done.state, done.attempts) == ("done", 2), project.log(run)
    told = open_version(project.data_dir / only_version(project).folder).read("provenance.json")
    assert told["images"]["train"] + told["images"]["holdout"] == 8


def test_waiting_stopping_and_cancelling(project: Project) -> None:
    project.annotate(8)
    run = project.request(recipe_options={"epochs": 10_000})
    with project.store.begin() as session:
        other = enqueue_run(session, "8", "command", {"device": "cpu"}, "full").id
    process = project.start(run)
    project.wait(lambda: (project.run(run).progress or {}).get("phase") == "training", "not training", run)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) >= 10
    again, waiting = project.start(run), project.start(other)
    project.wait(lambda: "waits for run" in (project.run(other).message or ""), "not waiting", other)
    assert again.wait(DEADLINE_S) == 0  # it has its process
    os.killpg(waiting.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(DEADLINE_S) == waiting.wait(DEADLINE_S) == 0, project.log(run)
    assert project.run(run).state == "queued"
    assert "goes on from its last checkpoint" in (project.run(run).message or "")

    process = project.start(run)
    project.wait(lambda: project.run(run).state == "running", "not running", run)
    with project.store.begin() as session:
        cancel_run(session, run, process_lives)
    assert process.wait(DEADLINE_S) == 0, project.log(run)
    assert project.run(run).state == "cancelled"
    assert not list((project.data_dir / "versions").rglob("config.json"))


def test_old_versions_go(project: Project) -> None:
    ids = []
    for number in range(6):
        folder = project.data_dir / "versions" / "7" / f"run-{number}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({}))
        with project.store.begin() as session:
            version = add_version(
                session,
                project="7",
                digest=str(number),
                folder=f"versions/7/run-{number}",
                run_id=None,
                metrics={},
                thresholds={},
            )
            if number < 2:
                promote_version(session, version, "better")
            ids.append(version.id)
    removed = prune(project.store, project.data_dir, "7", keep=2)
    assert sorted(version.id for version in removed) == ids[2:4]
    left = sorted(path.name for path in (project.data_dir / "versions" / "7").iterdir())
    assert left == ["run-0", "run-1", "run-4", "run-5"]
    with project.store.read() as session:
        serving = serving_version(session, "7")
        assert serving is not None
        assert serving.folder == "versions/7/run-1"
    assert prune(project.store, project.data_dir, "7", keep=2) == []
