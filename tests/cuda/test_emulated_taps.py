"""Deformable convolution's own CUDA kernels, run on the CPU (emulated_device.h), against the reference.

They stand before and after the kernels of multi-scale deformable attention, which test_emulation.py runs.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from groundingml.ops import reference

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "csrc" / "deform_conv" / "cuda"
ELEMENTS = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
CASES = {
    "3x3": {"size": (6, 7), "kernel": (3, 3), "stride": 1, "padding": 1, "dilation": 1},
    "stride 2": {"size": (6, 7), "kernel": (3, 3), "stride": 2, "padding": 1, "dilation": 1},
    "dilated and not square": {"size": (9, 8), "kernel": (2, 3), "stride": 1, "padding": 2, "dilation": 2},
    "more than a block of threads": {
        "size": (21, 23),
        "kernel": (3, 3),
        "stride": 1,
        "padding": 1,
        "dilation": 1,
    },
}


class Emulation:
    """place_taps and collect_gradients on CPU tensors; only the tensors given may be read."""

    def __init__(self, library: Path, case: dict) -> None:
        self.library = ctypes.CDLL(str(library))
        (height, width), kernel = case["size"], case["kernel"]
        self.geometry = [case[name] for name in ("stride", "padding", "dilation")]
        stride, padding, dilation = self.geometry
        self.out = [
            (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
            for n, k in zip((height, width), kernel, strict=True)
        ]
        self.size, self.kernel = (height, width), kernel
        self.convolution = (ctypes.c_int64 * 9)(height, width, *kernel, *self.geometry, *self.out)

    def call(
        self, name: str, kind: int, read: list[Tensor], begin: int, end: int, *written: Tensor
    ) -> bytes | None:
        for tensor in read:
            self.library.emulation_readable(
                ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.numel() * tensor.element_size())
            )
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*read, *written)]
        function = self.library[f"emulation_{name}"]
        function.restype = ctypes.c_char_p
        error: bytes | None = function(
            self.convolution,
            kind,
            *pointers[:2],
            ctypes.c_int64(begin),
            ctypes.c_int64(end),
            *pointers[2:],
        )
        self.library.emulation_forget()
        return error


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("c++") or ""]
    if not compiler[0]:
        pytest.skip("needs a C++ compiler")
    path = tmp_path_factory.mktemp("emulation") / "taps.so"
    flags = "-std=c++17 -O1 -fPIC -shared -Wno-unknown-pragmas -fno-strict-aliasing"
    command = [*compiler, *flags.split(), f"-I{HERE}", f"-I{KERNELS}", str(HERE / "emulated_taps.cpp")]
    subprocess.run([*command, "-o", str(path)], check=True)
    return path


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_taps_become_points_and_gradients_come_back(library: Path, case: str, dtype: torch.dtype) -> None:
    emulation = Emulation(library, CASES[case])
    taps, pixels = emulation.kernel[0] * emulation.kernel[1], emulation.out[0] * emulation.out[1]
    torch.manual_seed(0)
    offsets = (3 * torch.randn(1, 2 * taps, *emulation.out, dtype=torch.float64)).to(dtype)
    mask = torch.rand(1, taps, *emulation.out, dtype=torch.float64).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exact = offsets.double().requires_grad_()
    expected = reference._tap_locations(exact, emulation.size, emulation.kernel, *emulation.geometry)
    # The reference lays taps out as a picture, (Ho, Kh, Wo, Kw); the kernels keep a pixel's taps together.
    rows, columns = emulation.out
    expected = expected.view(rows, emulation.kernel[0], columns, emulation.kernel[1], 2)
    expected = expected.permute(0, 2, 1, 3, 4).reshape(pixels, taps, 2)

    grad_points = torch.randn(pixels, taps, 2, dtype=wide)
    grad_weights = torch.randn(pixels, taps, dtype=wide)
    (expected_grad,) = torch.autograd.grad(expected, exact, grad_points.double())
    grad_offsets = torch.full(offsets.shape, float("nan"), dtype=wide)
    grad_mask = torch.full(mask.shape, float("nan"), dtype=wide)
    middle = pixels // 2 + 1
    for begin, end in ((0, middle), (middle, pixels)):  # in two parts, as for large maps
        points = torch.full((end - begin, taps, 2), float("nan"), dtype=wide)
        weights = torch.full((end - begin, taps), float("nan"), dtype=wide)
        error = emulation.call("place_taps", ELEMENTS[dtype], [offsets, mask], begin, end, points, weights)
        assert error is None
        torch.testing.assert_close(points.double(), expected[begin:end].detach(), rtol=1e-6, atol=1e-6)
        assert torch.equal(weights.T, mask.flatten(2)[0, :, begin:end].to(wide))
        gradients = [grad_points[begin:end].contiguous(), grad_weights[begin:end].contiguous()]
        is_double = int(dtype == torch.float64)
        error = emulation.call("collect_gradients", is_double, gradients, begin, end, grad_offsets, grad_mask)
        assert error is None
    torch.testing.assert_close(grad_offsets.double(), expected_grad, rtol=1e-6, atol=1e-6)
    assert torch.equal(grad_mask[0].flatten(1), grad_weights.T)


def test_the_emulator_refuses_to_read_beyond_the_mask(library: Path) -> None:
    """The net under the test above."""
    emulation = Emulation(library, CASES["3x3"])
    offsets, short_mask = torch.zeros(18, 42), torch.zeros(8, 42)
    points, weights = torch.zeros(42, 9, 2), torch.zeros(42, 9)
    error = emulation.call("place_taps", 1, [offsets, short_mask], 0, 42, points, weights)
    assert error == b"a load leaves the tensors"
