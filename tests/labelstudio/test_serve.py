"""`groundingml serve` as a process: what it prints, refuses, and how it ends."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from groundingml.cli.serve import connecting_help
from groundingml.labelstudio import Settings

COMMAND = [sys.executable, "-m", "groundingml.cli", "serve"]


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_at_once_and_ends_cleanly(end: signal.Signals, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = tmp_path / "log"
    with log.open("w") as output:
        # A model that is not there: the server has to answer all the same, and to say so.
        process = subprocess.Popen(
            [*COMMAND, "--port", str(port), "--model", str(tmp_path / "no-such-model.pth")],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        model = ""
        while model != "failed" and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            try:
                model = httpx.get(f"http://127.0.0.1:{port}/health", timeout=2, trust_env=False).json()[
                    "model"
                ]
            except httpx.HTTPError:
                time.sleep(0.1)
        assert model == "failed"
        process.send_signal(end)
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
    text = log.read_text()
    assert f"http://127.0.0.1:{port}" in text
    assert "ML_BLOCK_LOCAL_IP=false SSRF_PROTECTION_ENABLED=false" in text
    assert "no-such-model.pth could not be loaded" in text
    assert text.rstrip().endswith("groundingml: stopped.")


def test_running_requests_are_answered_before_it_ends(tmp_path: Path, photo_dir: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = tmp_path / "log"
    options = ["--port", str(port), "--data-dir", str(tmp_path / "data"), "--log-format", "json"]
    with log.open("w") as output:
        process = subprocess.Popen([*COMMAND, *options], stdout=output, stderr=subprocess.STDOUT)
    backend = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
    photo = base64.b64encode((photo_dir / "cat.jpg").read_bytes()).decode()
    # Each task has a label of its own, so that no two are one question.
    tasks = [
        {"id": i, "data": {"image": f"data:image/jpeg;base64,{photo}", "labels": [{"value": f"cat {i}"}]}}
        for i in range(150)
    ]
    config = (
        '<View><Image name="image" value="$image"/>'
        '<RectangleLabels name="label" toName="image" value="$labels"/></View>'
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if backend.get("/health").json()["model"] == "ready":
                    break
            time.sleep(0.1)
        with ThreadPoolExecutor(1) as pool:
            body = {"tasks": tasks, "project": "1.1", "label_config": config, "params": {}}
            asked = pool.submit(backend.post, "/predict", json=body, headers={"X-Request-ID": "the-last-one"})
            while "groundingml_images_total 0.0" in httpx.get(f"{backend.base_url}/metrics", timeout=20).text:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            results = asked.result().json()["results"]
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        backend.close()
    done = sum("result" in item for item in results)
    assert len(results) == 150
    assert 1 <= done < 150, "what was begun is answered, the rest is left for the next time"
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    (said,) = [line for line in lines if line["message"].startswith("Predicted")]
    assert said["request_id"] == "the-last-one"
    assert f"Predicted {done} of 150 tasks" in said["message"]


def test_a_taken_port_is_said(taken_port: int) -> None:
    done = run("--port", str(taken_port))
    assert done.returncode == 1
    assert f"Port {taken_port} on 127.0.0.1 is in use" in done.stderr
    assert f"--port {taken_port + 1}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--basic-auth-user", "ann"], {}, "both a user name and a password"),
        (["--basic-auth-user", "ann", "--basic-auth-pass-file", "/no/such/file"], {}, "cannot be read"),
        ([], {"LABEL_STUDIO_API_KEY": "k", "LABEL_STUDIO_URL": ""}, "without Label Studio's URL"),
        (["--allow-host", "http://nas"], {}, "neither HOST nor HOST:PORT"),
        ([], {"GROUNDINGML_ALLOW_HOST": "nas a/b"}, "neither HOST nor HOST:PORT"),
        (["--host", "no-such-host.invalid"], {}, "is not an address of this machine"),
    ],
)
def test_wrong_options_are_said(options: list[str], environment: dict[str, str], message: str) -> None:
    done = run(*options, **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "defusedxml"])
def test_missing_server_libraries_are_named(package: str) -> None:
    # A port of the system's choice, so that nothing else can be what is wrong.
    code = f"""import sys, socket
sys.modules[{package!r}] = None
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    sys.argv[1:] = ["serve", "--port", str(free.getsockname()[1])]
from groundingml.cli import main
main()"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"{package!r}" in done.stderr
    assert "pip install 'groundingml[serve]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_it_says_depends_on_what_is_missing() -> None:
    nothing = connecting_help(Settings(), "127.0.0.1", 9090)
    assert "NOT SET: LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY" in nothing
    url_only = connecting_help(Settings(label_studio_url="http://ls:8080"), "0.0.0.0", 9090)
    assert "NOT SET: LABEL_STUDIO_API_KEY" in url_only
    assert "http://127.0.0.1:9090" in url_only
    settings = Settings(
        label_studio_url="http://ls:8080",
        label_studio_api_key="s3cret",
        basic_auth_user="ann",
        basic_auth_password="s3cret",
    )
    everything = connecting_help(settings, "::1", 9090)
    assert "NOT SET" not in everything
    assert "http://[::1]:9090" in everything
    assert "user ann" in everything
    assert "s3cret" not in everything
