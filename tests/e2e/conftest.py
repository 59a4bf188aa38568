"""A real Label Studio and a real `groundingml serve`, started for the tests and stopped after them."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

START_S = 180
MODEL = os.environ.get("GROUNDINGML_E2E_MODEL", "nano")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs Label Studio."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


class Process:
    """A program in a process group of its own, with its output in a file."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, is_ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not is_ready():
            code = self._process.poll()
            assert code is None, f"{what} stopped with {code}:\n{self.tail()}"
            assert time.monotonic() < deadline, f"{what} is not ready after {START_S} s:\n{self.tail()}"
            time.sleep(0.25)

    def stop(self) -> int:
        """End it gently, then by force. Its exit code."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self._process.pid, number)
                return self._process.wait(30)
        return self._process.wait(10)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-5000:]


def answers(url: str, is_good: Callable[[dict[str, Any]], bool]) -> bool:
    with contextlib.suppress(httpx.HTTPError, ValueError):
        response = httpx.get(url, timeout=2, trust_env=False)
        return response.status_code == 200 and is_good(response.json())
    return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def clean_environment(**added: str) -> dict[str, str]:
    """This process's environment without settings of Label Studio, ours, and proxies."""
    drop = ("LABEL_STUDIO_", "HEARTEX_", "GROUNDINGML_")
    names = {"DEBUG", "HOST", "PORT", "USERNAME", "PASSWORD", "USER_TOKEN", "DATABASE_NAME"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(drop) and name not in names and not name.lower().endswith("_proxy")
    }
    return {**kept, "PYTHONUNBUFFERED": "1", **added}


class LabelStudio:
    """A running Label Studio with one user, driven over its API as its pages do."""

    def __init__(self, venv: Path, folder: Path, **settings: str) -> None:
        """``settings`` are environment variables that differ from those the tests need."""
        self.url = f"http://127.0.0.1:{free_port()}"
        self.email, self.password, self.token = (
            "ann@example.com",
            secrets.token_hex(12),
            secrets.token_hex(20),
        )
        self.files = folder / "files"
        self.files.mkdir(parents=True)
        template = next(venv.glob("template-*.sqlite3"))
        shutil.copyfile(template, folder / "label_studio.sqlite3")
        environment = clean_environment(
            LABEL_STUDIO_BASE_DATA_DIR=str(folder),
            DATABASE_NAME=str(folder / "label_studio.sqlite3"),
            LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED="true",
            LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=str(self.files),
            COLLECT_ANALYTICS="false",
            SENTRY_DSN="",
            FRONTEND_SENTRY_DSN="",
            LATEST_VERSION_CHECK="false",
            # The two settings without which it refuses a backend on this machine.
            **{"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false", **settings},
        )
        port = self.url.rpartition(":")[2]
        credentials = ["--username", self.email, "--password", self.password, "--user-token", self.token]
        network = [
            "--no-browser",
            "--internal-host",
            "127.0.0.1",
            "--port",
            port,
            "--enable-legacy-api-token",
        ]
        command = [
            str(venv / "bin" / "label-studio"),
            "start",
            "--log-level",
            "WARNING",
            *network,
            *credentials,
        ]
        self._process = Process(command, environment, folder / "label-studio.log")
        self._http = httpx.Client(
            base_url=self.url, timeout=180, trust_env=False, headers={"Authorization": f"Token {self.token}"}
        )
        try:
            self._process.wait_until(
                lambda: answers(f"{self.url}/health", lambda health: health.get("status") == "UP"),
                "Label Studio",
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._http.close()
        self._process.stop()

    def api(self, method: str, path: str, **request: Any) -> Any:
        """One API call; the decoded answer."""
        answer = self._http.request(method, path, **request)
        assert answer.is_success, f"{method} {path} -> {answer.status_code}: {answer.text[:2000]}"
        return answer.json() if answer.content else None

    @functools.cached_property
    def personal_access_token(self) -> str:
        """A personal access token, made as a user does, in a logged-in session. A user has one at a time."""
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as browser:
            browser.get("/user/login/")
            form = {
                "email": self.email,
                "password": self.password,
                "csrfmiddlewaretoken": browser.cookies["csrftoken"],
            }
            browser.post("/user/login/", data=form, headers={"Referer": f"{self.url}/user/login/"})
            headers = {"X-CSRFToken": browser.cookies["csrftoken"], "Referer": self.url}
            answer = browser.post("/api/token/", headers=headers)
            assert answer.is_success, answer.text[:500]
            return str(answer.json()["token"])

    def create_project(self, title: str, label_config: str) -> int:
        return int(
            self.api("POST", "/api/projects/", json={"title": title, "label_config": label_config})["id"]
        )

    def upload(self, project: int, photos: Sequence[Path]) -> list[int]:
        """Upload photos; the new tasks, one for each photo in order."""
        files = [
            (f"file{i}", (photo.name, photo.read_bytes(), "image/jpeg")) for i, photo in enumerate(photos)
        ]
        return self._new_tasks(project, f"/api/projects/{project}/import?commit_to_project=true", files=files)

    def import_tasks(self, project: int, data: Sequence[dict[str, Any]]) -> list[int]:
        return self._new_tasks(
            project, f"/api/projects/{project}/import", json=[{"data": entry} for entry in data]
        )

    def _new_tasks(self, project: int, path: str, **request: Any) -> list[int]:
        before = {task["id"] for task in self.tasks(project)}
        self.api("POST", path, **request)
        return sorted(task["id"] for task in self.tasks(project) if task["id"] not in before)

    def tasks(self, project: int) -> list[dict[str, Any]]:
        answer = self.api("GET", f"/api/tasks?project={project}&page_size=500&fields=all")
        tasks: list[dict[str, Any]] = answer["tasks"]
        return tasks

    def open_task(self, task: int) -> dict[str, Any]:
        """What opening a task in the editor asks; Label Studio fetches a missing prediction then."""
        opened: dict[str, Any] = self.api("GET", f"/api/tasks/{task}")
        return opened

    def connect(self, project: int, url: str, user: str = "", password: str = "") -> dict[str, Any]:
        body = {"url": url, "project": project, "title": "groundingml", "is_interactive": True}
        if user:
            body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
        backend: dict[str, Any] = self.api("POST", "/api/ml/", json=body)
        return backend

    def backend(self, backend: int) -> dict[str, Any]:
        answer: dict[str, Any] = self.api("GET", f"/api/ml/{backend}")
        return answer

    def retrieve_predictions(self, project: int) -> dict[str, Any]:
        """The Data Manager's "Retrieve predictions" over all tasks."""
        answer: dict[str, Any] = self.api(
            "POST",
            f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}",
            json={
                "selectedItems": {"all": True, "excluded": []},
                "filters": {"conjunction": "and", "items": []},
                "ordering": [],
            },
        )
        return answer

    def predictions(self, project: int) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self.api("GET", f"/api/predictions/?project={project}")
        return answer

    def type_prompt(self, backend: int, task: int, text: str) -> dict[str, Any]:
        """What the editor posts when an annotator submits a smart TextArea."""
        region = {
            "id": secrets.token_hex(5),
            "from_name": "prompt",
            "to_name": "image",
            "type": "textarea",
            "origin": "manual",
            "value": {"text": [text]},
        }
        body = {"task": task, "context": {"result": [region]}}
        answer = self.api("POST", f"/api/ml/{backend}/interactive-annotating", json=body)
        assert "errors" not in answer, answer
        item: dict[str, Any] = answer["data"]
        return item


class Backend:
    """A running `groundingml serve`."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        serve = [sys.executable, "-m", "groundingml.cli", "serve"]
        command = [*serve, "--model", MODEL, "--port", str(port), *options]
        self.data_dir = folder / "data"
        settings = {"GROUNDINGML_DATA_DIR": str(self.data_dir), **environment}
        self._process = Process(command, clean_environment(**settings), folder / "serve.log")
        try:
            self._process.wait_until(
                lambda: answers(f"{self.url}/health", lambda health: health["model"] != "loading"),
                "groundingml serve",
            )
            assert answers(f"{self.url}/health", lambda health: health["model"] == "ready"), self.log()
        except BaseException:
            self._process.stop()
            raise

    def stop(self) -> int:
        return self._process.stop()

    def log(self) -> str:
        return self._process.log.read_text(errors="replace")


class SdkBackend:
    """A running `label-studio-ml start` with our class, set up as its users do."""

    def __init__(self, venv: Path, folder: Path, **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        (folder / "model.py").write_text(
            "from groundingml.labelstudio.sdk_backend import GroundingMLBackend, start\nstart()\n"
        )
        environment = clean_environment(
            **environment, PATH=f"{venv / 'bin'}:{os.environ['PATH']}", PYTHONPATH=str(folder)
        )
        program = str(venv / "bin" / "label-studio-ml")
        init = [program, "init", "backend", "--script", "model.py:GroundingMLBackend"]
        subprocess.run(init, cwd=folder, env=environment, check=True, capture_output=True)
        start = [program, "start", str(folder / "backend"), "--host", "127.0.0.1", "--port", str(port)]
        self._process = Process(start, environment, folder / "label-studio-ml.log")
        try:
            self._process.wait_until(
                lambda: answers(f"{self.url}/health", lambda health: health["status"] == "UP"),
                "label-studio-ml",
            )
        except BaseException:
            self._process.stop()
            raise

    def stop(self) -> int:
        return self._process.stop()

    def log(self) -> str:
        return self._process.log.read_text(errors="replace")


@pytest.fixture(scope="session")
def label_studio_ml_venv() -> Path:
    """An environment with label-studio-ml, made on first use."""
    script = Path(__file__).with_name("label_studio_ml_env.py")
    made = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=False)
    assert made.returncode == 0, "label-studio-ml's environment could not be made; see above"
    return Path(made.stdout.strip())


@pytest.fixture
def sdk_backend(
    request: pytest.FixtureRequest, label_studio: LabelStudio, label_studio_ml_venv: Path, tmp_path: Path
) -> Iterator[SdkBackend]:
    """With a legacy token, or as parameter "personal" with a personal access token."""
    is_personal = getattr(request, "param", "legacy") == "personal"
    server = SdkBackend(
        label_studio_ml_venv,
        tmp_path,
        LABEL_STUDIO_URL=label_studio.url,
        LABEL_STUDIO_API_KEY=label_studio.personal_access_token if is_personal else label_studio.token,
        GROUNDINGML_DATA_DIR=str(tmp_path / "data"),
        GROUNDINGML_MODEL=MODEL,
    )
    yield server
    server.stop()


@pytest.fixture(scope="session")
def label_studio_venv() -> Path:
    """Label Studio's own environment, made on first use (minutes)."""
    script = Path(__file__).with_name("label_studio_env.py")
    made = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=False)
    assert made.returncode == 0, "Label Studio's environment could not be made; see above"
    return Path(made.stdout.strip())


@pytest.fixture(scope="session")
def label_studio(label_studio_venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    server = LabelStudio(label_studio_venv, tmp_path_factory.mktemp("label-studio"))
    yield server
    server.stop()


@pytest.fixture
def start_label_studio(label_studio_venv: Path, tmp_path: Path) -> Iterator[Callable[..., LabelStudio]]:
    """A function that starts one more Label Studio, with other settings in its environment."""
    started: list[LabelStudio] = []

    def start(**settings: str) -> LabelStudio:
        started.append(LabelStudio(label_studio_venv, tmp_path / "label-studio", **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def backend(label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    server = Backend(
        tmp_path_factory.mktemp("backend"),
        LABEL_STUDIO_URL=label_studio.url,
        LABEL_STUDIO_API_KEY=label_studio.token,
    )
    yield server
    server.stop()


@pytest.fixture(scope="session")
def make_backend() -> type[Backend]:
    """Backend(folder, *options, **environment), for those who stop it themselves."""
    return Backend


@pytest.fixture
def start_backend(tmp_path: Path) -> Iterator[Callable[..., Backend]]:
    """A function that starts one more backend, with options and environment variables."""
    started: list[Backend] = []

    def start(*options: str, **environment: str) -> Backend:
        started.append(Backend(tmp_path, *options, **environment))
        return started[-1]

    yield start
    for server in started:
        server.stop()
