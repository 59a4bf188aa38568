"""`make demo`: everything is up and labelled, and Ctrl-C leaves nothing."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"
READY_S = 240


@pytest.fixture
def demo(
    label_studio_venv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The running demo and the file of what it prints; its folders are made where the test can look."""
    # Not in tmp_path: Label Studio's paths would be too long to be shown.
    temporary = Path(tempfile.mkdtemp(prefix="demo-test-"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("GROUNDINGML_LS_VENV", str(label_studio_venv))
    printed = tmp_path / "printed.txt"
    with printed.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(DEMO)], stdout=output, stderr=subprocess.STDOUT, text=True, cwd=temporary
        )
    yield process, printed
    process.terminate()
    process.wait(60)
    shutil.rmtree(temporary)


def test_the_demo_is_ready_and_leaves_nothing(demo: tuple[subprocess.Popen[str], Path]) -> None:
    process, printed = demo
    deadline = time.monotonic() + READY_S
    while "The demo is ready" not in printed.read_text():
        assert process.poll() is None, printed.read_text()
        assert time.monotonic() < deadline, printed.read_text()
        time.sleep(0.5)
    time.sleep(1)  # the rest of the panel
    text = printed.read_text()
    address = re.search(r"(http://127\.0\.0\.1:(\d+))/projects/(\d+)", text)
    backend = re.search(r"The backend is http://127\.0\.0\.1:(\d+)", text)
    assert address is not None, text
    assert backend is not None, text

    with httpx.Client(base_url=address[1], timeout=30, trust_env=False) as browser:
        browser.get("/user/login/")
        email, password = re.search(r"Log in as (\S+) with the password\W+(\S+?)\.?\s", text).groups()  # type: ignore[union-attr]
        form = {"email": email, "password": password, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
        browser.post("/user/login/", data=form, headers={"Referer": address[1]})
        tasks = browser.get(f"/api/tasks?project={address[3]}&fields=all").json()["tasks"]
        assert len(tasks) == 4
        labels = {
            label
            for task in tasks
            for prediction in task["predictions"]
            for region in prediction["result"]
            for label in region["value"]["rectanglelabels"]
        }
        assert {"Cat", "Cup", "Person"} <= labels
        assert "choose the version" not in text, "the project shows these boxes already"

    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert "nothing is left behind" in printed.read_text()
    assert list(Path(tempfile.gettempdir()).glob("groundingml-demo-*")) == []
    for port in (address[2], backend[1]):
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", int(port))) != 0
