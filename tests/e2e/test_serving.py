"""What the server does around its predictions, with a real Label Studio: webhooks with credentials,
remembered prompts, more tasks than one request has time for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <TextArea name="prompt" toName="image" editable="true" rows="1" maxSubmissions="1" smart="true"/>
  <RectangleLabels name="label" toName="image" smart="true"><Label value="Cat"/></RectangleLabels>
</View>"""
WEBHOOK_SECRET = "a-secret-of-this-test-0123456789"


@pytest.fixture
def project(label_studio: Any, request: pytest.FixtureRequest) -> int:
    return int(label_studio.create_project(request.node.name[:50], CONFIG))


@pytest.fixture
def photos(photo_dir: Path) -> list[Path]:
    return [photo_dir / name for name in ("coffee.jpg", "cat.jpg", "astronaut.jpg")]


def groundingml(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = ("LABEL_STUDIO_", "GROUNDINGML_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return subprocess.run(
        [sys.executable, "-m", "groundingml.cli", *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def submit(label_studio: Any, task: int, prompt: str) -> None:
    """Submit an annotation that holds nothing but the prompt, as the editor sends it."""
    value = {"value": {"text": [prompt]}, "id": f"p{time.monotonic_ns()}", "origin": "manual"}
    region = {**value, "from_name": "prompt", "to_name": "image", "type": "textarea"}
    label_studio.api("POST", f"/api/tasks/{task}/annotations/", json={"result": [region], "lead_time": 2.5})


def remembered(backend: Any, project: int, wanted: dict[str, str], **request: Any) -> bool:
    """Whether the backend remembers these prompts, a moment from now at the latest."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answer = httpx.get(f"{backend.url}/projects/{project}/prompts", trust_env=False, **request)
        if answer.json()["prompts"] == wanted:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("way", ["webhook secret", "password"])
def test_connect_gives_the_webhook_its_credentials(
    label_studio: Any,
    start_backend: Callable[..., Any],
    project: int,
    photos: list[Path],
    tmp_path: Path,
    way: str,
) -> None:
    secret, password = tmp_path / "secret", tmp_path / "password"
    secret.write_text(f"{WEBHOOK_SECRET}\n")
    password.write_text("long and secret\n")
    basic = ["--basic-auth-user", "ann", "--basic-auth-pass-file", str(password)]
    options = [*basic, *(["--webhook-secret-file", str(secret)] if way == "webhook secret" else [])]
    token = label_studio.personal_access_token
    reach = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": token}
    backend = start_backend(*options, **reach)
    (task,) = label_studio.upload(project, photos[:1])
    for auth in (None, ("ann", "wrong")):
        assert httpx.post(f"{backend.url}/webhook", json={}, auth=auth, trust_env=False).status_code == 401

    connect = ["connect", "--project", str(project), "--backend-url", backend.url, *options]
    done = groundingml(*connect, **reach)
    assert done.returncode == 0, done.stderr
    assert "was connected" in done.stdout
    assert "the webhook got the credentials" in done.stdout
    again = groundingml(*connect, **reach)
    assert (again.returncode, again.stdout.count("\n")) == (0, 1)
    assert "was connected so already" in again.stdout
    assert len(label_studio.api("GET", f"/api/webhooks/?project={project}")) == 1
    assert len(label_studio.api("GET", f"/api/ml/?project={project}")) == 1

    submit(label_studio, task, "spoon")
    assert remembered(backend, project, {"prompt": "spoon"}, auth=("ann", "long and secret"))
    label_studio.retrieve_predictions(project)
    assert len(label_studio.predictions(project)) == 1
    for text in (token, WEBHOOK_SECRET, "long and secret"):
        assert text not in done.stdout + done.stderr + backend.log()


def test_a_backend_connected_with_the_secret_in_its_path(
    label_studio: Any, start_backend: Callable[..., Any], project: int, photos: list[Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(WEBHOOK_SECRET)
    backend = start_backend(
        "--webhook-secret-file", str(secret),
        LABEL_STUDIO_URL=label_studio.url, LABEL_STUDIO_API_KEY=label_studio.token,
    )  # fmt: skip
    (task,) = label_studio.upload(project, photos[:1])
    assert label_studio.connect(project, f"{backend.url}/{WEBHOOK_SECRET}")["state"] == "CO"
    submit(label_studio, task, "spoon")
    assert remembered(backend, project, {"prompt": "spoon"})
    assert WEBHOOK_SECRET not in backend.log()


def test_the_prompt_submitted_last_comes_with_the_next_task(
    label_studio: Any, backend: Any, project: int, photos: list[Path]
) -> None:
    first, second, cat = label_studio.upload(project, [photos[0]] * 2 + [photos[1]])
    connected = label_studio.connect(project, backend.url)
    (before,) = label_studio.open_task(first)["predictions"]
    submit(label_studio, cat, "cup")
    assert remembered(backend, project, {"prompt": "cup"})
    (with_prompt,) = label_studio.open_task(second)["predictions"]
    assert with_prompt["model_version"] != before["model_version"], "another prompt is another version"
    assert with_prompt["model_version"] == label_studio.backend(connected["id"])["model_version"]
    assert [region for region in with_prompt["result"] if region.get("meta") == {"text": ["cup"]}]
    assert not [region for region in before["result"] if "meta" in region]

    shown = groundingml("prompts", "--project", str(project), GROUNDINGML_DATA_DIR=str(backend.data_dir))
    assert "prompt: cup" in shown.stdout
    reach = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token}
    label = groundingml(
        "label", "--project", str(project), GROUNDINGML_DATA_DIR=str(backend.data_dir), **reach
    )
    assert label.returncode == 0, label.stderr
    versions = {p["task"]: p["model_version"] for p in label_studio.predictions(project)}
    assert versions[cat] == with_prompt["model_version"], "the command asks what the server asks"
    submit(label_studio, cat, ".")
    assert remembered(backend, project, {})
    (third,) = label_studio.upload(project, photos[:1])
    (without,) = label_studio.open_task(third)["predictions"]
    assert without["model_version"] == before["model_version"]


def test_more_tasks_than_one_request_has_time_for(
    label_studio: Any, start_backend: Callable[..., Any], project: int, photos: list[Path]
) -> None:
    """Label Studio asks for them one by one, so that one click labels all of them."""
    backend = start_backend(
        "--predict-budget", "1",
        LABEL_STUDIO_URL=label_studio.url, LABEL_STUDIO_API_KEY=label_studio.token,
    )  # fmt: skip
    tasks = label_studio.upload(project, photos * 12)
    label_studio.connect(project, backend.url)
    label_studio.retrieve_predictions(project)
    predictions = label_studio.predictions(project)
    assert sorted(prediction["task"] for prediction in predictions) == sorted(tasks)
    assert "asked for one by one" in backend.log()
