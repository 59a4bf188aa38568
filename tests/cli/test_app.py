from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import groundingml
from groundingml.cli.app import app


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"groundingml {groundingml.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--help"],
            ["detect", "serve", "env", 'groundingml detect photo.jpg --labels "cat, remote control"'],
        ),
        ([], ["detect", "serve", "env"]),
        (["detect", "--help"], ["--labels", "--caption", "--threshold", "--json", "protective goggles"]),
        (["detect", "-h"], ["--labels-file"]),
        (["env", "--help"], ["--json"]),
        (["serve", "--help"], ["--port"]),
    ],
)
def test_help_teaches(arguments: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    text = CliRunner().invoke(app, arguments).output
    for words in expected:
        assert words in text


def test_commands_start_without_importing_torch() -> None:
    code = (
        "import sys, groundingml.cli.app;"
        "print([name for name in ('torch', 'transformers', 'numpy', 'fastapi') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_its_libraries_the_command_says_what_to_install(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from groundingml.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert f"needs the package {package!r}" in result.stderr
    assert "pip install 'groundingml[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("package", ["httpx", "defusedxml"])
def test_without_the_server_libraries_label_and_doctor_say_what_to_install(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; from groundingml.cli import main;"
        "sys.argv[1:] = ['doctor', '--url', 'http://127.0.0.1:9']; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert f"needs the package {package!r}" in result.stderr
    assert "groundingml[serve]" in result.stderr
