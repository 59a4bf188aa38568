"""What of the GPU benchmarks runs without a GPU: options, commands, counting instructions, the report."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SASS = """
        Function : forward
        /*0000*/                   MOV R1, c[0x0][0x28] ;             /* 0x00000a0000017a02 */
        /*0010*/                   SHFL.IDX PT, R7, R3, RZ, 0x181f ;  /* 0x00001f0000077589 */
        /*0020*/                   FFMA R4, R7, R8, R4 ;              /* 0x0000000807047223 */
        /*0030*/               @P0 BRA 0x10 ;                         /* 0xffffffe000000947 */
        /*0040*/                   EXIT ;                             /* 0x000000000000794d */
        /*0050*/                   BRA 0x50;                          /* 0xfffffff000007947 */
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_instructions_in_a_loop_count_twice(load) -> None:
    timing: ModuleType = load("gpu_baseline.timing")
    assert timing.count_instructions(SASS) == 1 + 2 * 3 + 1


def test_report(load) -> None:
    gpu: ModuleType = load("gpu")
    key = {"shape": "encoder", "batch": 1, "dtype": "bfloat16"}
    times = {"us": 61.234, "spread_us": 0.5, "samples": 30, "graph_us": 55.0, "graph_spread_us": 0.25}
    rows = [
        key | {"contestant": "ours", "mode": "forward", "error": 0.00123} | times,
        key | {"contestant": "ours", "mode": "backward"} | times,
        key | {"contestant": "deformops cuda", "mode": "forward", "left_out": "no kernels"},
    ]
    op = {"floors": [key | {"bytes_us": 15.0, "issue_us": 38.94}], "rows": rows}
    timed = {"ms": 80.0, "spread_ms": 1.0, "samples": 10, "peak_gib": 2.5}
    model_rows = [
        {"batch": 4, "dtype": "float32", "contestant": "ours"} | timed,
        {"batch": 4, "dtype": "float32", "contestant": "ours compiled", "left_out": "a graph break"},
    ]
    lowest = [{"batch": 4, "dtype": "float32", "gflop": 3300.0, "products_ms": 40.0, "bytes_ms": 0.5}]
    model = {"difference": {"logits": 7e-5, "boxes": 1e-6}, "rows": model_rows, "floors": lowest}
    text = gpu.render({"gpu_op": op, "gpu_model": model}, {"GPU": "a GPU"})
    assert "- GPU: a GPU" in text
    assert "Floors of the forward (us): bytes 15.0, issue 38.9" in text
    assert "| ours | 61.2 ± 0.5 | 55.0 ± 0.2 | 1.2e-03 | 61.2 ± 0.5 | 55.0 ± 0.2 |" in text
    assert "| deformops cuda | left out: no kernels" in text
    assert "| 4 | float32 | ours | 80.0 ± 1.0 | 20.0 | 2.0 | 160.0 | 2.5 |" in text
    assert "left out: a graph break" in text
    tables = [block.split("\n") for block in text.split("\n\n") if block.startswith("|")]
    assert [{line.count("|") for line in table if line} for table in tables] == [{7}, {9}]


def test_options(load) -> None:
    gpu: ModuleType = load("gpu")
    assert gpu.parse([]).steps == list(gpu.STEPS)
    options = gpu.parse(["--steps", "op", "report", "--quick", "--results", "elsewhere"])
    assert (options.steps, options.quick, options.dry_run) == (["op", "report"], True, False)
    assert options.results == Path("elsewhere")
    with pytest.raises(SystemExit):
        gpu.parse(["--steps", "nothing"])


def test_dry_run_prints_commands_and_starts_nothing(
    load, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gpu: ModuleType = load("gpu")
    run = gpu.Run(tmp_path, quick=True, dry_run=True, arch="90")
    assert [gpu.build(run), gpu.test(run), gpu.sanitize(run), run.measure("gpu_op")] == [0, 0, 0, 0]
    printed = capsys.readouterr().out
    for part in ("GROUNDINGML_CUDA_ARCHS=9.0", "--no-build-isolation", "compute-sanitizer", "not slow"):
        assert part in printed
    assert re.search(r"gpu_op.json --seconds \d+ --quick", printed)
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_takes_too_long_is_ended(load, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With all that it has started; the next step has its own time."""
    gpu: ModuleType = load("gpu")
    run = gpu.Run(tmp_path, quick=True, dry_run=False, arch="90", seconds=100.0)
    assert run.begin("op") == pytest.approx(100 * gpu.SHARES["op"], abs=1)
    run.step_ends = time.monotonic() + 0.2
    late = tmp_path / "late"
    assert run.command(["bash", "-c", f"(sleep 3; touch {late}) & wait"]) == gpu.TIMED_OUT
    assert "out of time" in capfd.readouterr().out
    assert run.begin("test") > 1
    assert run.command(["sleep", "4"]) == 0
    assert not late.exists()


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--results", str(tmp_path), "--steps", "report"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "No GPU" in done.stderr
