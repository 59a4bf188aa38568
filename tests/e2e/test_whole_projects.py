"""`groundingml label` and `groundingml doctor` against a real Label Studio."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MODEL = os.environ.get("GROUNDINGML_E2E_MODEL", "nano")
CONFIG = """<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image">
    <Label value="Cat"/>
    <Label value="Person" predicted_values="person,woman"/>
    <Label value="Cup" alias="mug"/>
  </RectangleLabels>
</View>"""


class Command:
    """The command line with the address and the token of the test's Label Studio."""

    def __init__(self, label_studio: Any) -> None:
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GROUNDINGML_MODEL": MODEL,
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": label_studio.token,
        }

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "groundingml.cli", *map(str, arguments), "--json"],
            env={**self._environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, **environment: str) -> tuple[int, dict[str, Any]]:
        """The exit status and the JSON report."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=300)
        assert out, err
        return process.returncode, json.loads(out)

    def doctor(self, *arguments: object, **environment: str) -> tuple[int, dict[str, tuple[str, str, str]]]:
        """The exit status and, by check, status, message and next step."""
        status, report = self.run("doctor", *arguments, **environment)
        found = {
            entry["check"]: (entry["status"], entry["message"], entry["next_step"])
            for entry in report["findings"]
        }
        return status, found


@pytest.fixture
def command(label_studio: Any) -> Command:
    return Command(label_studio)


@pytest.fixture
def project(label_studio: Any, request: pytest.FixtureRequest) -> int:
    return int(label_studio.create_project(request.node.name[:50], CONFIG))


@pytest.fixture
def photos(photo_dir: Path) -> list[Path]:
    return [photo_dir / name for name in ("cat.jpg", "astronaut.jpg", "coffee.jpg")]


def versions(label_studio: Any, project: int) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {task["id"]: [] for task in label_studio.tasks(project)}
    for prediction in label_studio.predictions(project):
        found[prediction["task"]].append(prediction["model_version"])
    return found


def test_a_whole_project(
    label_studio: Any, backend: Any, project: int, photos: list[Path], command: Command
) -> None:
    cat, astronaut, coffee = label_studio.upload(project, photos)
    (broken,) = label_studio.import_tasks(project, [{"image": "/data/upload/1/no-such-file.jpg"}])
    token = label_studio.personal_access_token
    status, report = command.run("label", "--project", project, LABEL_STUDIO_API_KEY=token)
    assert status == 1, "one task failed"
    assert [entry["item"] for entry in report["failed"]] == [f"task {broken}"]
    assert (report["total"], report["labelled"], report["left"]) == (4, 3, 0)
    labels = {}
    for prediction in label_studio.predictions(project):
        values = (region["value"]["rectanglelabels"] for region in prediction["result"])
        labels[prediction["task"]] = {label for names in values for label in names}
    assert "Cat" in labels[cat]
    assert "Person" in labels[astronaut]
    assert "mug" in labels[coffee]
    assert sum(report["boxes"].values()) == sum(len(p["result"]) for p in label_studio.predictions(project))

    connected = label_studio.connect(project, backend.url)
    assert connected["model_version"] == report["model_version"], "the backend would not predict them again"
    label_studio.retrieve_predictions(project)
    assert len(label_studio.predictions(project)) == 3

    options = {"url": backend.url, "project": project, "extra_params": {"threshold": 0.2}}
    label_studio.api("PATCH", f"/api/ml/{connected['id']}", json=options)
    version = label_studio.api("GET", f"/api/ml/?project={project}")[0]["model_version"]
    assert version != report["model_version"]
    status, report = command.run("label", "--project", project, "--filter", f"id = {cat}")
    assert (status, report["labelled"], report["model_version"]) == (0, 1, version)

    changed = CONFIG.replace('value="Cat"', 'value="Cat" predicted_values="cat,kitten"')
    label_studio.api("PATCH", f"/api/projects/{project}/", json={"label_config": changed})
    others = ("--project", project, "--filter", f"id != {broken}")
    status, report = command.run("label", *others, "--only-missing")
    assert (status, report["total"]) == (0, 0), "these tasks have predictions, of another version"
    status, report = command.run("label", *others, "--filter", f"id <= {astronaut}")
    assert (status, report["labelled"]) == (0, 2)
    assert [len(found) for found in versions(label_studio, project).values()] == [3, 2, 1, 0]


def test_killed_in_the_middle_and_started_again(
    label_studio: Any, project: int, photos: list[Path], command: Command
) -> None:
    (first,) = label_studio.upload(project, photos[:1])
    image = label_studio.open_task(first)["data"]["image"]
    label_studio.import_tasks(project, [{"image": image}] * 23)
    options = ("label", "--project", project, "--batch", 3)
    process = command.start(*options)
    deadline = time.monotonic() + 120
    while len(label_studio.predictions(project)) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was still at work"
    process.communicate()
    stored = len(label_studio.predictions(project))
    assert 6 <= stored < 24
    status, report = command.run(*options)
    assert status == 0
    assert report["already_labelled"] + report["labelled"] == 24
    assert versions(label_studio, project) == {
        task["id"]: [report["model_version"]] for task in label_studio.tasks(project)
    }


def test_a_folder_is_imported_with_its_boxes(
    label_studio: Any, photos: list[Path], command: Command, tmp_path: Path
) -> None:
    folder = label_studio.files / "my photos"
    folder.mkdir()
    for photo in photos[:2]:
        (folder / photo.name).write_bytes(photo.read_bytes())
    output, xml = tmp_path / "tasks.json", tmp_path / "config.xml"
    xml.write_text(CONFIG)
    status, report = command.run("label", "--folder", folder, "--label-config", xml, "--output", output)
    assert (status, report["labelled"]) == (0, 2)

    project = label_studio.create_project("a folder", CONFIG)
    storage = {"project": project, "path": str(folder), "title": "photos", "use_blob_urls": True}
    label_studio.api("POST", "/api/storages/localfiles", json=storage)
    label_studio.api("POST", f"/api/projects/{project}/import", json=json.loads(output.read_text()))
    assert sorted(p["model_version"] for p in label_studio.predictions(project)) == (
        [report["model_version"]] * 2
    )
    status, report = command.run("label", "--project", project)
    assert (status, report["already_labelled"]) == (0, 2), "the same version, so nothing is left to do"
    status, found = command.doctor("--project", project)
    assert found["images"][0] == "ok", "the images are where the tasks say"


def test_doctor_on_a_good_setup(
    label_studio: Any, backend: Any, project: int, photos: list[Path], command: Command
) -> None:
    label_studio.upload(project, photos[:1])
    label_studio.connect(project, backend.url)
    status, found = command.doctor("--project", project)
    assert status == 0
    assert {name: result[0] for name, result in found.items()} == dict.fromkeys(
        [
            "Label Studio",
            "token",
            "project",
            "backend",
            "webhook",
            "images",
            "label config",
            "prediction",
            "stored and read back",
            "webhook delivery",
        ],
        "ok",
    )
    assert label_studio.predictions(project) == [], "what was made for the check is gone"


def test_doctor_names_what_is_broken(
    label_studio: Any, backend: Any, project: int, photos: list[Path], command: Command
) -> None:
    status, found = command.doctor("--project", project, LABEL_STUDIO_API_KEY="f" * 40)
    assert (status, found["token"][0]) == (1, "fail")
    assert "personal access token" in found["token"][2]

    # Not connected, and an address at which nothing is; then one that Label Studio could connect.
    projects = label_studio.api("GET", "/api/projects/")["count"]
    status, found = command.doctor("--backend-url", "http://127.0.0.1:9", "--project", project)
    assert (status, found["backend"][0]) == (1, "fail")
    assert "start groundingml serve" in found["backend"][2]
    status, found = command.doctor("--backend-url", backend.url)
    assert (status, found["backend"][0]) == (0, "warn")
    assert label_studio.api("GET", "/api/projects/")["count"] == projects, "the trial is gone"

    # Connected without a webhook, with an image that is not there.
    label_studio.import_tasks(project, [{"image": "/data/upload/1/no-such-file.jpg"}])
    label_studio.connect(project, backend.url)
    (webhook,) = label_studio.api("GET", f"/api/webhooks/?project={project}")
    label_studio.api("DELETE", f"/api/webhooks/{webhook['id']}/")
    status, found = command.doctor("--project", project)
    assert status == 1
    assert {name for name, result in found.items() if result[0] == "fail"} == {"webhook", "images"}
    assert "SSRF_PROTECTION_ENABLED=false" in found["webhook"][2]
    assert "no-such-file.jpg" in found["images"][1]

    # A label config without rectangles, which the backend refuses too.
    choices = '<Choices name="c" toName="image"><Choice value="x"/></Choices>'
    config = f'<View><Image name="image" value="$image"/>{choices}</View>'
    label_studio.api("PATCH", f"/api/projects/{project}/", json={"label_config": config})
    status, found = command.doctor("--project", project)
    assert (status, found["label config"][0]) == (1, "fail")
    assert "<Choices>" in found["label config"][1]


def test_doctor_on_a_label_studio_that_refuses_private_addresses(
    start_label_studio: Callable[..., Any], backend: Any
) -> None:
    """As it is installed."""
    closed = start_label_studio(ML_BLOCK_LOCAL_IP="true", SSRF_PROTECTION_ENABLED="true")
    status, found = Command(closed).doctor("--backend-url", backend.url)
    assert (status, found["backend"][0]) == (1, "fail")
    assert "private address" in found["backend"][1]
    assert "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false" in found["backend"][2]
    assert closed.api("GET", "/api/projects/")["count"] == 0, "the trial is gone"


def test_doctor_and_a_backend_with_a_password(
    label_studio: Any,
    start_backend: Callable[..., Any],
    project: int,
    photos: list[Path],
    tmp_path: Path,
    command: Command,
) -> None:
    """The password reaches the backend with predictions, but not with webhooks, and not our messages."""
    password = tmp_path / "password"
    password.write_text("long-and-secret\n")
    options = ("--basic-auth-user", "ann", "--basic-auth-pass-file", str(password))
    backend = start_backend(*options)  # without LABEL_STUDIO_URL, so it cannot read uploaded images
    label_studio.upload(project, photos[:1])
    label_studio.connect(project, backend.url, "ann", "long-and-secret")
    status, found = command.doctor("--project", project)
    assert status == 1
    assert found["backend"][0] == "ok"
    assert found["prediction"][0] == "fail"
    assert "LABEL_STUDIO_URL" in found["prediction"][2]
    assert found["webhook delivery"][0] == "fail"
    assert "groundingml connect" in found["webhook delivery"][2]

    (webhook,) = label_studio.api("GET", f"/api/webhooks/?project={project}")
    headers = {"Authorization": "Basic YW5uOmxvbmctYW5kLXNlY3JldA=="}
    label_studio.api("PATCH", f"/api/webhooks/{webhook['id']}/", json={"headers": headers})
    status, found = command.doctor("--project", project)
    assert found["webhook delivery"][0] == "ok"
    assert "long-and-secret" not in str(found)
