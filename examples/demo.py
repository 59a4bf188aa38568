"""`make demo`: a Label Studio with a project, its photos and predictions ready, on this machine.

Starts Label Studio (from the environment that tests/e2e/label_studio_env.py makes) and `groundingml serve`,
makes a project, uploads the photos beside this file, labels them with `groundingml label`, and prints the
address to open. Everything lives in a temporary folder; Ctrl-C stops both servers and removes it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import httpx
from rich.console import Console
from rich.panel import Panel

HERE = Path(__file__).resolve().parent
START_S = 300
STOP_S = 20
EMAIL, PASSWORD = "demo@example.com", "demo-password"
"""Of the one user. Label Studio listens on this machine only."""

console = Console(highlight=False)


def main() -> None:
    options = read_options()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="groundingml-demo-")))
            run_demo(options, folder, stack)
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left behind.")


def run_demo(options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> None:
    """Everything up to the address; then wait until a server ends or Ctrl-C."""
    label_studio_port, backend_port = free_port(options.port), free_port(options.backend_port)
    url, backend_url = f"http://127.0.0.1:{label_studio_port}", f"http://127.0.0.1:{backend_port}"
    token = secrets.token_hex(20)

    with console.status("Looking for Label Studio's environment (the first time takes some minutes) ..."):
        venv = label_studio_venv()
    label_studio = stack.enter_context(
        running(
            label_studio_command(venv, label_studio_port, token), label_studio_settings(folder, venv), folder
        )
    )
    ours = {
        "LABEL_STUDIO_URL": url,
        "LABEL_STUDIO_API_KEY": token,
        "GROUNDINGML_DATA_DIR": str(folder / "groundingml"),
    }
    backend = stack.enter_context(
        running(groundingml("serve", "--model", options.model, "--port", str(backend_port)), ours, folder)
    )
    with console.status(f"Starting Label Studio on {url} ..."):
        wait_for(f"{url}/health", label_studio, folder)
    with console.status(f"Starting groundingml on {backend_url} ..."):
        wait_for(f"{backend_url}/health", backend, folder)

    with console.status("Making the project ..."):
        project = make_project(url, token, backend_url)
    console.print("Labelling the photos:")
    subprocess.run(
        groundingml("label", "--project", str(project), "--model", options.model),
        env={**os.environ, **ours},
        check=True,
    )
    console.print(
        Panel(
            f"[bold]{url}/projects/{project}[/bold]\n\n"
            f"Log in as [bold]{EMAIL}[/bold] with the password [bold]{PASSWORD}[/bold]. Open a photo: "
            'its boxes are there; correct and submit them, or type "hair . face" into the prompt.\n'
            f"The backend is {backend_url}. Ctrl-C stops everything and removes it.",
            title="The demo is ready",
        )
    )
    while label_studio.poll() is None and backend.poll() is None:
        time.sleep(0.5)
    log = (folder / "servers.log").read_text(errors="replace")
    sys.exit(f"A server has stopped by itself. The end of its log:\n{log[-3000:]}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="nano", help="short name, hub id, folder or file (nano)")
    parser.add_argument("--port", type=int, default=8080, help="Label Studio's; another if taken (8080)")
    parser.add_argument("--backend-port", type=int, default=9090, help="ours; another if taken (9090)")
    return parser.parse_args()


def groundingml(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "groundingml.cli", *arguments]


def label_studio_venv() -> Path:
    """Label Studio's own environment, made on first use."""
    script = HERE.parent / "tests" / "e2e" / "label_studio_env.py"
    made = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True)
    return Path(made.stdout.strip())


def label_studio_command(venv: Path, port: int, token: str) -> list[str]:
    return [
        *(str(venv / "bin" / "label-studio"), "start", "--no-browser", "--log-level", "WARNING"),
        *("--internal-host", "127.0.0.1", "--port", str(port)),
        *("--username", EMAIL, "--password", PASSWORD, "--user-token", token, "--enable-legacy-api-token"),
    ]


def label_studio_settings(folder: Path, venv: Path) -> dict[str, str]:
    """Environment variables of Label Studio, and its database, which starts as a copy of a migrated one."""
    data = folder / "label-studio"
    data.mkdir()
    database = data / "label_studio.sqlite3"
    shutil.copyfile(next(venv.glob("template-*.sqlite3")), database)
    return {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "DATABASE_NAME": str(database),
        # Without both it refuses a backend on this machine.
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LATEST_VERSION_CHECK": "false",
    }


def make_project(url: str, token: str, backend_url: str) -> int:
    """A project with our example config, the photos, and the backend connected; its number."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Token {token}"}, timeout=120) as api:

        def post(path: str, **request: object) -> dict[str, int]:
            answer = api.post(path, **request)  # type: ignore[arg-type]
            answer.raise_for_status()
            return dict(answer.json())

        config = (HERE / "label_config.xml").read_text()
        project = post("/api/projects/", json={"title": "groundingml demo", "label_config": config})["id"]
        photos = sorted((HERE / "photos").glob("*.jpg"))
        files = [(photo.name, (photo.name, photo.read_bytes(), "image/jpeg")) for photo in photos]
        post(f"/api/projects/{project}/import", files=files)
        backend = {"title": "groundingml", "url": backend_url, "project": project, "is_interactive": True}
        post("/api/ml/", json=backend)
    return project


@contextlib.contextmanager
def running(
    command: Sequence[str], settings: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, so that Ctrl-C reaches us first and no child outlives us."""
    with (folder / "servers.log").open("ab") as log:
        server = subprocess.Popen(
            command,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield server
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, number)
                server.wait(STOP_S)


def wait_for(health_url: str, server: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(health_url, timeout=5, trust_env=False).is_success:
                return
        time.sleep(0.3)
    log = (folder / "servers.log").read_text(errors="replace")
    sys.exit(f"{health_url} does not answer. The end of the servers' log:\n{log[-3000:]}")


def free_port(wanted: int) -> int:
    """The wanted port, or any when that is taken."""
    for port in (wanted, 0):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    sys.exit("No port is free.")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
