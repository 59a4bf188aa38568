"""The whole loop on a real task: blood cells, which the embedded model has no words for.

An annotator corrects 60 pictures in a real Label Studio and presses "Start training". The version that comes
of it serves because it is better, knows what it knew before, and can be taken back; one that learned wrong
labels does not serve.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from groundingml.inference import Detector
from groundingml.learning.measuring import measure
from groundingml.store import default_url, open_store
from groundingml.store.tables import Run, Task, Version
from groundingml.store.versions import serving_version
from groundingml.training import read_coco

pytestmark = pytest.mark.proof

CORRECTED = 60
TRAINING_S = 20 * 60
SETTLE_S = 60
LABELS = ("red blood cell", "white blood cell", "platelet")
WRONG = dict(zip(LABELS, (LABELS[1], LABELS[2], LABELS[0]), strict=True))
CONFIG = f"""<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image">
    {"".join(f'<Label value="{label}"/>' for label in LABELS)}
  </RectangleLabels>
</View>"""


@pytest.fixture(scope="module")
def bccd(shared_data: Path) -> Path:
    folder = shared_data / "data" / "bccd"
    if not folder.is_dir():
        pytest.skip(f"no pictures of blood cells at {folder}: BCCD cannot be redistributed here")
    return folder


@pytest.fixture(scope="module")
def everyday(shared_data: Path) -> Path:
    folder = shared_data / "data" / "coco128"
    if not folder.is_dir():
        pytest.skip(f"no everyday photos at {folder}: COCO's cannot be redistributed here")
    return folder


class Loop:
    """A Label Studio project with the backend, its tasks, and the truth about them."""

    def __init__(self, label_studio: Any, backend: Any, data_dir: Path, bccd: Path) -> None:
        self.label_studio = label_studio
        self.backend = backend
        self.data_dir = data_dir
        self.truth = read_coco(bccd / "train.json", bccd / "images").records[:CORRECTED]
        self.test = read_coco(bccd / "test.json", bccd / "images")
        self.project = label_studio.create_project("Blood cells", CONFIG)
        self.connection = label_studio.connect(self.project, backend.url)["id"]
        self.tasks = label_studio.upload(self.project, [record.path for record in self.truth])
        self.unseen = label_studio.upload(self.project, [record.path for record in self.test.records[:3]])

    def correct(self, rename: Callable[[str], str] = lambda name: name) -> None:
        """Submit the true boxes of all pictures, as an annotator who corrects the predictions."""
        for task, record in zip(self.tasks, self.truth, strict=True):
            self.label_studio.api(
                "POST",
                f"/api/tasks/{task}/annotations/",
                json={"result": regions(record, rename), "lead_time": 20.0},
            )

    def mislabel(self, tasks: set[str]) -> None:
        """Change the labels of these tasks' annotations into wrong ones."""
        for task, record in zip(self.tasks, self.truth, strict=True):
            if str(task) in tasks:
                (annotation,) = self.label_studio.open_task(task)["annotations"]
                self.label_studio.api(
                    "PATCH",
                    f"/api/annotations/{annotation['id']}/",
                    json={"result": regions(record, lambda name: WRONG[name])},
                )

    def answers(self) -> tuple[str, list[list[Any]]]:
        """The backend's version, and what it finds on three pictures that nobody corrected, to the last
        bit."""
        tasks = [self.label_studio.open_task(task) for task in self.unseen]
        body = {
            "tasks": [{"id": task["id"], "data": task["data"]} for task in tasks],
            "project": f"{self.project}.1",
            "label_config": CONFIG,
        }
        answer = httpx.post(f"{self.backend.url}/predict", json=body, timeout=120, trust_env=False)
        assert answer.status_code == 200, answer.text
        items = answer.json()["results"]
        found = [[[r["value"], r["score"]] for r in item["result"]] for item in items]
        return str(answer.json()["model_version"]), found

    def wait_for_version(self, other_than: str) -> str:
        """The version that /setup gives, once it is not this one."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            body = {"project": f"{self.project}.1", "schema": CONFIG}
            answer = httpx.post(f"{self.backend.url}/setup", json=body, timeout=10, trust_env=False)
            version = str(answer.json()["model_version"])
            if version != other_than:
                return version
            assert time.monotonic() < deadline, (
                f"the version is still {version}: {self.backend.log()[-3000:]}"
            )
            time.sleep(0.5)

    def wait_for_run(self, run: int) -> Run:
        deadline = time.monotonic() + TRAINING_S
        while True:
            answer = httpx.get(f"{self.backend.url}/runs/{run}", timeout=10, trust_env=False).json()
            if answer["state"] not in ("queued", "running"):
                break
            assert time.monotonic() < deadline, answer
            time.sleep(2)
        with self.store() as store, store.read() as session:
            return session.get_one(Run, run)

    def store(self) -> Any:
        return open_store(default_url(self.data_dir))

    def serving(self) -> Version | None:
        with self.store() as store, store.read() as session:
            return serving_version(session, str(self.project))

    def command(self, *words: str) -> str:
        command = [sys.executable, "-m", "groundingml.cli", *words, "--data-dir", str(self.data_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRAINING_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def loop(
    label_studio: Any, make_backend: Any, bccd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Loop]:
    data_dir = tmp_path_factory.mktemp("learning")
    backend = make_backend(
        data_dir,
        "--data-dir",
        str(data_dir),
        LABEL_STUDIO_URL=label_studio.url,
        LABEL_STUDIO_API_KEY=label_studio.token,
    )
    yield Loop(label_studio, backend, data_dir, bccd)
    backend.stop()


def regions(record: Any, rename: Callable[[str], str]) -> list[dict[str, Any]]:
    return [
        {
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": record.width,
            "original_height": record.height,
            "value": {
                "x": 100 * box[0] / record.width,
                "y": 100 * box[1] / record.height,
                "width": 100 * (box[2] - box[0]) / record.width,
                "height": 100 * (box[3] - box[1]) / record.height,
                "rotation": 0,
                "rectanglelabels": [rename(name)],
            },
        }
        for box, name in zip(record.boxes_xyxy, record.names, strict=True)
    ]


def test_what_people_correct_teaches_the_model(loop: Loop, everyday: Path) -> None:
    first_version, first_answers = loop.answers()
    loop.label_studio.retrieve_predictions(loop.project)
    assert {p["model_version"] for p in loop.label_studio.predictions(loop.project)} == {first_version}
    loop.correct()
    # As importing predictions does, which would then hide those of the new version.
    loop.label_studio.api("PATCH", f"/api/projects/{loop.project}/", json={"model_version": first_version})

    loop.label_studio.api("POST", f"/api/ml/{loop.connection}/train")
    deadline = time.monotonic() + SETTLE_S
    while not (runs := httpx.get(f"{loop.backend.url}/runs", trust_env=False).json()["runs"]):
        assert time.monotonic() < deadline, loop.backend.log()[-3000:]
        time.sleep(0.5)
    run = loop.wait_for_run(runs[0]["id"])
    assert run.state == "done", run.message
    version = loop.serving()
    assert version is not None, run.message
    assert "promoted: held-out mAP50" in (version.reason or "")
    splits = loop_splits(loop)
    assert len(splits) == CORRECTED
    assert 5 <= sum(split == "holdout" for split in splits.values()) <= 25

    # Label Studio sees the new version at once, and its own button brings the new boxes.
    second_version = loop.wait_for_version(first_version)
    deadline = time.monotonic() + SETTLE_S
    while loop.label_studio.api("GET", f"/api/projects/{loop.project}/")["model_version"] != "groundingml":
        assert time.monotonic() < deadline, loop.backend.log()[-3000:]
        time.sleep(0.5)
    loop.label_studio.retrieve_predictions(loop.project)
    seen = {p["model_version"] for p in loop.label_studio.predictions(loop.project)}
    assert seen == {first_version, second_version}
    taught_version, taught_answers = loop.answers()
    assert taught_version == second_version
    assert taught_answers != first_answers

    # What learned wrong labels is kept, with the reason, and does not serve.
    loop.mislabel({task for task, split in splits.items() if split == "train"})
    loop.command(
        "train",
        "--project", str(loop.project),
        "--steps", "120",
        "--label-studio-url", loop.label_studio.url,
        "--label-studio-api-key", loop.label_studio.token,
    )  # fmt: skip
    newest = json.loads(loop.command("versions", "list", "--json"))[0]
    assert newest["id"] != version.id
    assert newest["state"] == "rejected"
    assert "not promoted: held-out mAP50" in newest["reason"]
    assert loop.serving().id == version.id  # type: ignore[union-attr]
    assert loop_splits(loop) == splits
    assert loop.answers() == (taught_version, taught_answers)

    # And the way back.
    loop.command("versions", "rollback", "--project", str(loop.project))
    assert loop.wait_for_version(second_version) == first_version
    assert loop.answers() == (first_version, first_answers)

    # On the official test split, which nothing has seen.
    base = Detector.from_pretrained("nano", device="cpu")
    taught = Detector.from_pretrained(loop.data_dir / version.folder, device="cpu")
    before, after = (measure(detector, loop.test).evaluation.map50 for detector in (base, taught))
    photos = read_coco(everyday / "annotations.json", everyday / "images")
    kept_before, kept_after = (measure(detector, photos).evaluation.map50 for detector in (base, taught))
    print(f"\ntest mAP50 {before:.3f} -> {after:.3f}, everyday photos {kept_before:.3f} -> {kept_after:.3f}")
    assert before < 0.05
    assert after >= 0.55
    assert kept_after > 0.8 * kept_before


def loop_splits(loop: Loop) -> dict[str, str | None]:
    with loop.store() as store, store.read() as session:
        tasks = session.query(Task).filter(Task.project == str(loop.project), Task.split.is_not(None))
        return {task.task: task.split for task in tasks}
