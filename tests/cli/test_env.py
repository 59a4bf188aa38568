from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import groundingml
from groundingml import ops
from groundingml.cli import env
from groundingml.cli.app import app

PACKAGE = Path(groundingml.__file__).parent


def test_json_holds_what_a_bug_report_needs() -> None:
    result = CliRunner().invoke(app, ["env", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    status = ops.status()
    assert found["groundingml"] == groundingml.__version__
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["packages"]["transformers"] == metadata.version("transformers")
    assert found["ops"]["compiled"] == status.available
    assert found["ops"]["cpu_capability"] == status.cpu_capability
    assert found["ops"]["cuda_archs"] == list(status.cuda_archs)
    assert [device["name"] for device in found["devices"]] == [
        "cpu",
        *(f"cuda:{number}" for number in range(torch.cuda.device_count())),
    ]
    assert found["embedded_model"].startswith("nano, ")
    assert (status.reason is None) == (found["problems"] == [])


def test_text_names_the_same_facts() -> None:
    text = CliRunner().invoke(app, ["env"]).stdout
    for name in (
        "groundingml",
        "python",
        "packages",
        "compiled ops",
        "processor capability",
        "CUDA of PyTorch",
    ):
        assert f"\n{name}  " in f"\n{text}"
    assert "\ndevice                      cpu: " in text


def test_missing_ops_are_said_with_the_reason_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ops.OpsStatus(False, "nobody compiled them", "pip install --editable .", (), "none")
    monkeypatch.setattr(ops, "status", lambda: missing)
    result = CliRunner().invoke(app, ["env"])
    assert result.exit_code == 0
    assert "why: nobody compiled them" in result.stdout
    assert "run: pip install --editable ." in result.stdout
    assert "the slower PyTorch reference is used" in result.stdout
    (problem,) = env.collect()["problems"]
    assert problem["what"] == "compiled ops"


def test_a_missing_embedded_model_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(env, "_package_folder", lambda: tmp_path)
    found = env.collect()
    assert found["embedded_model"] is None
    assert "model.safetensors" in next(
        p["why"] for p in found["problems"] if p["what"] == "embedded model nano"
    )


def test_missing_packages_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = env._version
    monkeypatch.setattr(env, "_version", lambda name: None if name in ("scipy", "fastapi") else real(name))
    result = CliRunner().invoke(app, ["env"])
    assert "Missing: scipy" in result.stdout
    assert "Missing: fastapi" not in result.stdout, "an extra is no problem"
    assert "fastapi (optional: pip install 'groundingml[serve]')" in result.stdout


def test_a_wrong_processor_capability_is_said() -> None:
    """In a process of its own, because the ops are loaded once."""
    environment = {**os.environ, "GROUNDINGML_CPU_CAPABILITY": "abacus"}
    command = [sys.executable, "-m", "groundingml.cli", "env", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    if found["ops"] is None:
        assert found["problems"][0]["run"] == "unset GROUNDINGML_CPU_CAPABILITY"
    else:
        assert not found["ops"]["compiled"], "without compiled ops there is no capability to choose"
