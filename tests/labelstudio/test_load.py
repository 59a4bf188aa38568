"""Sixteen clients at once, for a moment: a real server process under the load of `benchmarks/load.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_sixteen_clients_get_answers_and_memory_stays(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "load.py"
    output = tmp_path / "load.json"
    options = ["--seconds", "6", "--clients", "16", "--pictures", "4", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert (found["errors"], found["refused_with_retry_after"]) == (0, 0)
    assert found["answered"] >= 16
    assert found["health_requests"] >= 3
    assert found["memory_second_half_mb"] - found["memory_first_half_mb"] < 150
    assert found["exit_code_after_sigterm"] == 0
