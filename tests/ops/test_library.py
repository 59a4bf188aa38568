"""Loading: the status, the instruction sets, and what happens when something compiled is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import groundingml
from groundingml import ops
from groundingml.ops import library, registration

PACKAGE = Path(groundingml.__file__).parent

# Runs where the library may be missing: every op works, and warnings are counted.
USE_OPS = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from groundingml import ops
    value = torch.randn(1, 6, 2, 4, requires_grad=True)
    offsets = torch.randn(1, 5, 2, 1, 3, 2)
    for _ in range(2):
        ops.ms_deform_attn(value, [(2, 3)], offsets, torch.randn(1, 5, 2, 1, 3)).sum().backward()
        points, logits = torch.rand(1, 5, 1, 2), torch.randn(1, 5, 2, 3)
        ops.ms_deform_attn_from_offsets(value, [(2, 3)], points, offsets, logits)
for warning in caught:
    if "groundingml" in str(warning.message):
        print("WARNING:", warning.message)
status = ops.status()
print("available:", status.available)
print("reason:", status.reason)
print("remedy:", status.remedy)
print("capability:", status.cpu_capability)
"""


def run_with_package(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", USE_OPS],
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def uncompiled(tmp_path: Path) -> Path:
    """A copy of the package's top and ops without anything compiled."""
    (tmp_path / "groundingml").mkdir()
    shutil.copy(PACKAGE / "__init__.py", tmp_path / "groundingml")
    shutil.copytree(
        PACKAGE / "ops",
        tmp_path / "groundingml" / "ops",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    return tmp_path


def test_a_missing_library_is_said_once_and_the_reference_used(uncompiled):
    result = run_with_package(uncompiled)
    assert result.returncode == 0, result.stderr
    warning, *rest = [line for line in result.stdout.splitlines() if line.startswith("WARNING")]
    assert not rest
    assert "compiled ops are missing" in warning
    assert f"{uncompiled}/groundingml/ops/_library.so does not exist" in warning
    assert "-m pip install" in warning
    assert "available: False" in result.stdout
    assert "capability: none" in result.stdout
    assert "not defined" not in result.stderr


def test_a_library_that_does_not_load_is_reported(uncompiled):
    (uncompiled / "groundingml" / "ops" / "_library.so").write_bytes(b"no library")
    result = run_with_package(uncompiled)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("WARNING") == 1
    assert f"do not load with PyTorch {torch.__version__}" in result.stdout
    assert "_library.so: file too short" in result.stdout  # the loader's own words


@pytest.mark.usefixtures("compiled")
class TestCompiled:
    def test_status(self):
        status = ops.status()
        assert status.available
        assert status.cpu_capability in ("default", "avx2", "avx512")
        assert set(status.build) == {"compiler", "flags", "torch", "nvcc", "cuda_archs"}
        assert all(status.build[key] for key in ("compiler", "flags", "torch"))
        assert bool(status.cuda_archs) == bool(status.build["nvcc"])

    def test_capability_by_environment(self):
        result = run_with_package(PACKAGE.parent, GROUNDINGML_CPU_CAPABILITY="default")
        assert "capability: default" in result.stdout, result.stderr
        assert "WARNING" not in result.stdout

    def test_an_unknown_capability_is_refused(self):
        from groundingml.ops import _build

        with pytest.raises(ValueError, match='"sse9" is unknown or not supported'):
            _build.set_cpu_capability("sse9")
        result = run_with_package(PACKAGE.parent, GROUNDINGML_CPU_CAPABILITY="sse9")
        assert result.returncode != 0
        assert "GROUNDINGML_CPU_CAPABILITY must name" in result.stderr

    def test_no_unit_shares_code_with_another(self):
        """A weak function (inline, template) would be kept once, maybe with AVX512, for all processors."""
        objects = sorted((PACKAGE.parent / "build" / "native").glob("*/*_cpu_kernels_*.o"))
        if not objects or not shutil.which("nm"):
            pytest.skip("no objects in build/native, or no nm")
        for path in objects:
            listing = subprocess.run(
                ["nm", "--defined-only", str(path)], capture_output=True, text=True, check=True
            )
            kinds = {line.split()[1] for line in listing.stdout.splitlines()}
            assert "D" in kinds or "R" in kinds, f"no table of kernels in {path}"
            assert not kinds & {"W", "u"}, f"weak functions in {path}"

    def test_tensors_without_kernels_use_the_reference_with_one_warning(self, make_inputs, monkeypatch):
        inputs = make_inputs(2)
        expected = inputs.call()
        monkeypatch.setattr(library, "_LIBRARY", library._Library(frozenset({"meta"}), "", None))
        library.warn_about_reference.cache_clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                result = inputs.call()
        library.warn_about_reference.cache_clear()
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
        assert ["no compiled kernels for cpu tensors" in str(warning.message) for warning in caught] == [True]

    def test_autocast_through_the_reference_gives_the_same_dtypes(self, make_inputs, monkeypatch):
        inputs = make_inputs(2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = inputs.call()
            monkeypatch.setattr(library, "_LIBRARY", library._Library(frozenset({"meta"}), "", None))
            result = inputs.call()
        assert result.dtype == expected.dtype
        torch.testing.assert_close(result.float(), expected.float(), rtol=0.02, atol=0.02)


def test_the_registrations_are_kept_alive():
    if library._LIBRARY.device_types:
        assert isinstance(library._LIBRARY.registrations, torch.library.Library)
    assert callable(registration.register)
