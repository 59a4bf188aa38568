"""The gate on stack and spills (csrc/msda/cuda/check_resources.py, a step of CI) tells good from bad."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "csrc" / "msda" / "cuda" / "check_resources.py"
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5first' for 'sm_80'
ptxas info    : Function properties for _Z5first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 62 registers, used 0 barriers, 1344 bytes cmem[0]
ptxas info    : Compiling entry function '_Z6second' for 'sm_90'
ptxas info    : Function properties for _Z6second
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 16 bytes cumulative stack size
"""
LOCAL_ARRAY = """\
__global__ void local_array(int* out, int n) {
  int values[64] = {};
  for (int i = 0; i < n; ++i) values[out[i] & 63] += i;
  for (int i = 0; i < n; ++i) out[i] = values[out[i] & 63];
}
"""


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_resources", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_reads_the_report_of_ptxas(gate: ModuleType) -> None:
    first, second = gate.parse(REPORT)
    assert (first.name, first.arch, first.registers) == ("_Z5first", "80", 62)
    assert (first.stack, first.spills) == (0, 0)
    assert (second.arch, second.stack, second.spills) == ("90", 16, 20)
    assert first.clean
    assert not second.clean


def test_a_report_without_numbers_is_an_error(gate: ModuleType) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        gate.parse(REPORT.replace("Used 64 registers", ""))


def test_covers_every_file_with_kernels(gate: ModuleType) -> None:
    names = {path.name for path in gate.SOURCES}
    assert names == {path.name for path in SCRIPT.parents[2].rglob("*.cu")} - {"register.cu"}
    assert {"forward.cu", "backward.cu", "taps.cu"} <= names


def test_finds_a_kernel_with_a_local_array(gate: ModuleType, tmp_path: Path) -> None:
    nvcc = gate.find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    source = tmp_path / "local_array.cu"
    source.write_text(LOCAL_ARRAY)
    (kernel,) = gate.compile_source(nvcc, source, ["80"], tmp_path)
    assert kernel.stack >= 64 * 4
    assert not kernel.clean
