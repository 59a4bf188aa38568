"""`groundingml export onnx`, and the example that goes from a photo to boxes with the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from groundingml.cli.app import app

pytest.importorskip("onnx", reason="needs pip install 'groundingml[onnx]'")
pytest.importorskip("onnxruntime", reason="needs pip install 'groundingml[onnx]'")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_runtime.py"


def test_from_the_command_to_boxes_without_pytorch(tmp_path: Path, photo_dir: Path) -> None:
    file = tmp_path / "nano.onnx"
    result = CliRunner().invoke(app, ["export", "onnx", "--output", str(file)])
    assert result.exit_code == 0, result.output
    assert "differs from PyTorch by at most" in result.stdout
    photo = str(photo_dir / "coffee.jpg")
    arguments = ["", str(file), photo, "cup, person, cat"]
    script = f"import runpy, sys; sys.modules['torch'] = None; sys.argv = {arguments!r}\n"
    script += f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = CliRunner().invoke(app, ["detect", photo, "--labels", "cup, person, cat", "--json"])
    expected = json.loads(ours.stdout)["images"][0]["detections"]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == [one["label"] for one in expected] == ["cup"]
    assert float(lines[0][0]) == pytest.approx(expected[0]["score"], abs=0.02)
    assert [float(edge) for edge in lines[0][2:]] == pytest.approx(expected[0]["box_xyxy"], abs=2)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_bytes(b"mine")
    for options, words in (
        (["--output", str(tmp_path / "there.onnx")], "exists; add --overwrite"),
        (["--output", str(tmp_path / "a.onnx"), "--msda-op", "fast"], "must be standard or custom"),
        (["--output", str(tmp_path / "no" / "a.onnx")], "there is no folder"),
        (["--output", str(tmp_path / "a.onnx"), "--model", "api:dino-x"], "is not ours to export"),
        (["--output", str(tmp_path / "a.onnx"), "--model", "nanno"], "Did you mean nano"),
    ):
        result = CliRunner().invoke(app, ["export", "onnx", *options])
        assert result.exit_code != 0
        assert words in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["there.onnx"]
