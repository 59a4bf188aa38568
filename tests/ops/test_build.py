"""setup.py: a failing compiler fails the build with its own message; no native code is a choice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# setup.py builds these, so pip must not fetch other ones.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REPOSITORY / "setup.py").exists(), reason="needs the source tree"),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the source tree, without what was built in it."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "csrc", folder / "csrc")
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "nano")
    shutil.copytree(REPOSITORY / "groundingml", folder / "groundingml", ignore=ignore)
    return folder


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GROUNDINGML_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**clean, "GROUNDINGML_NO_CUDA": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def build_inplace(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("setup.py", "build_ext", "--inplace", folder=folder, **environment)


def compiled_files(folder: Path) -> set[str]:
    return {path.name.split(".")[0] for path in (folder / "groundingml" / "ops").glob("*.so")}


def test_a_source_that_does_not_compile_fails_the_build(source):
    library = source / "csrc" / "library.cpp"
    library.write_text(library.read_text() + "\n#error this line is wrong\n")
    result = build_inplace(source)
    assert result.returncode != 0
    assert "this line is wrong" in result.stdout  # the compiler's own words
    assert "compiling the ops failed" in result.stdout
    assert "GROUNDINGML_NO_NATIVE=1" in result.stdout
    assert "Traceback" not in result.stdout
    assert not compiled_files(source)


@pytest.mark.parametrize(
    ("compiler", "message"), [("/nonexistent/g++", "No such file"), ("false", "non-zero exit")]
)
def test_a_compiler_that_does_not_run_fails_the_build(source, compiler, message):
    result = build_inplace(source, CXX=compiler)
    assert result.returncode != 0
    assert f"the C++ compiler {compiler} does not run" in result.stdout
    assert message in result.stdout


def test_a_broken_nvcc_fails_the_build_and_names_the_way_out(source, tmp_path):
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    result = build_inplace(source, CUDA_HOME=str(tmp_path), GROUNDINGML_NO_CUDA="0")
    assert result.returncode != 0
    assert f"{nvcc} does not run" in result.stdout
    assert "GROUNDINGML_NO_CUDA=1" in result.stdout


def test_without_native_code_on_purpose(source, tmp_path):
    result = run(
        *("-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "-q", "-w", str(tmp_path)),
        folder=source,
        GROUNDINGML_NO_NATIVE="1",
        CXX="/nonexistent/g++",
    )
    assert result.returncode == 0, result.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_a_wheel_holds_the_ops_and_a_second_build_does_nothing(source, tmp_path):
    first = build_inplace(source)
    assert first.returncode == 0, first.stdout
    assert compiled_files(source) == {"_library", "_build"}
    second = build_inplace(source)
    assert "no work to do" in second.stdout

    arguments = ("-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "-v", "-w", str(tmp_path))
    result = run(*arguments, folder=source)
    assert result.returncode == 0, result.stdout
    assert "no work to do" in result.stdout
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "groundingml/ops/_library.so" in names
    assert any(name.startswith("groundingml/ops/_build.") for name in names)
    assert not [name for name in names if name.startswith("csrc")]
