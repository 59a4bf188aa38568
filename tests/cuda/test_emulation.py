"""The CUDA kernels' own source, run lane by lane on the CPU (emulated_device.h), against the reference.

What it shows: every index, shuffle, bound and reduction, and the host code that picks a kernel and its grid.
What it cannot show: anything about timing, memory ordering or nvcc; test_gpu_*.py do, on a GPU.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "csrc" / "msda" / "cuda"
ELEMENTS = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
SMALL = {"batch": 1, "heads": 2, "channels": 8, "shapes": ((3, 4), (2, 2)), "points": 3}


class Problem(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("batch", "rows", "heads", "channels")],
        *[(name, ctypes.c_int64) for name in ("queries", "levels", "points")],
        ("shapes", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("batch_stride", "row_stride", "head_stride")],
    ]


class Emulation:
    """The host side of the kernels (problem.h), on CPU tensors. Outputs start as NaN: all must be written."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def call(self, name: str, inputs: Any, *arguments: Any) -> None:
        """Runs one function; only tensors given here may be read."""
        value = inputs.value
        shapes = torch.tensor(inputs.shapes)
        queries = inputs.points.shape[1]
        problem = Problem(*value.shape, queries, len(shapes), inputs.points.shape[4])
        problem.shapes, problem.value = shapes.data_ptr(), value.data_ptr()
        problem.batch_stride, problem.row_stride, problem.head_stride = value.stride()[:3]
        for tensor in (value, *(a for a in arguments if isinstance(a, Tensor))):
            last = sum(
                (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
            )
            bytes_used = (last + 1) * tensor.element_size() if tensor.numel() else 0
            self.library.emulation_readable(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(bytes_used))
        converted = [
            ctypes.c_void_p(a.data_ptr())
            if isinstance(a, Tensor)
            else None
            if a is None
            else ctypes.c_int64(a)
            for a in arguments
        ]
        function = self.library[f"emulation_{name}"]
        function.restype = ctypes.c_char_p
        error = function(ctypes.byref(problem), ELEMENTS[value.dtype], *converted)
        self.library.emulation_forget()
        if error is not None:
            raise RuntimeError(error.decode())

    def forward(self, inputs: Any) -> Tensor:
        output = poisoned(inputs.grad_output.shape, inputs.value.dtype)
        coordinates = 0 if inputs.reference is None else inputs.reference.shape[-1]
        geometry = ELEMENTS[inputs.points.dtype]
        self.call(
            "forward", inputs, geometry, inputs.reference, coordinates, inputs.points, inputs.weights, output
        )
        return output

    def backward(
        self, inputs: Any, *, ordered: bool = False, heads_at_a_time: int = 10**6
    ) -> dict[str, Tensor]:
        arithmetic = torch.float64 if inputs.value.dtype == torch.float64 else torch.float32
        inputs = replace(inputs, value=inputs.value.contiguous())
        locations, weights = inputs.points, inputs.weights
        coordinates = 0 if inputs.reference is None else inputs.reference.shape[-1]
        if coordinates:
            locations, weights = (poisoned(t.shape, arithmetic) for t in (locations, weights))
            arguments = (inputs.reference, coordinates, inputs.points, inputs.weights, locations, weights)
            self.call("expand", inputs, *arguments)
        grads = {
            "points": poisoned(locations.shape, arithmetic),
            "weights": poisoned(weights.shape, arithmetic),
        }
        given = (locations, weights, inputs.grad_output)
        if ordered:
            grads["value"] = poisoned(inputs.value.shape, inputs.value.dtype)
            self.call("ordered", inputs, heads_at_a_time, *given, grads["value"])
        else:
            grads["value"] = torch.zeros(inputs.value.shape, dtype=arithmetic)
        target = None if ordered else grads["value"]
        self.call("backward", inputs, *given, target, grads["points"], grads["weights"])
        if coordinates:
            grads["reference"] = poisoned(inputs.reference.shape, arithmetic)
            arguments = (inputs.reference, coordinates, inputs.points, weights, *grads_in_order(grads))
            self.call("collapse", inputs, *arguments)
        return grads


def grads_in_order(grads: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return grads["points"], grads["weights"], grads["reference"]


def poisoned(shape: Any, dtype: torch.dtype) -> Tensor:
    return torch.full(tuple(shape), float("nan"), dtype=dtype)


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("c++") or ""]
    if not compiler[0]:
        pytest.skip("needs a C++ compiler")
    library = tmp_path_factory.mktemp("emulation") / "emulation.so"
    flags = "-std=c++17 -O1 -fPIC -shared -Wno-unknown-pragmas -fno-strict-aliasing"
    # two samples to a launch, so that a batch of three takes two
    command = [*compiler, *flags.split(), "-DGML_SAMPLES_PER_LAUNCH=2", f"-I{HERE}", f"-I{KERNELS}"]
    subprocess.run([*command, str(HERE / "emulation.cpp"), "-o", str(library)], check=True)
    return Emulation(library)


# What each row takes through the host code: the compiled-in 4 x 4 points of 32 channels, the run-time kernel,
# or the one that reads single elements.
FORWARD_CASES = {
    "encoder: 2-D tiles of queries, compiled-in shape": {},
    "encoder, batch over two launches": {"batch": 3, "heads": 1},
    "decoder: consecutive queries": {"queries": 37},
    "one query": {"queries": 1, "batch": 1},
    "5 levels of 3 points": {"shapes": ((4, 5), (3, 3), (2, 2), (1, 2), (1, 1)), "points": 3},
    "1 level of 1 point": {"shapes": ((7, 3),), "points": 1, "queries": 9},
    "64 channels: two blocks of them": {"channels": 64, "queries": 9, "heads": 3},
    "40 channels: half a block": {"channels": 40, "queries": 9},
    "8 channels": {"channels": 8, "queries": 9},
    "5 channels: single elements": {"channels": 5, "queries": 9},
    "33 channels: single elements, two blocks": {"channels": 33, "queries": 5},
    "17 levels: more than the fast kernels take": {"shapes": ((2, 2),) * 17, "points": 2, "queries": 5},
    "levels of one row or column": {"shapes": ((1, 6), (6, 1), (1, 1), (2, 2)), "queries": 20},
}


@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("case", FORWARD_CASES)
def test_forward(
    emulation: Emulation,
    make_inputs: Callable[..., Any],
    error_of: Callable[..., float],
    case: str,
    coordinates: int,
) -> None:
    inputs = make_inputs(coordinates=coordinates, **FORWARD_CASES[case])
    assert error_of(emulation.forward(inputs), inputs.expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("coordinates", [0, 4])
@pytest.mark.parametrize("own_geometry", [True, False], ids=["16-bit geometry", "wide geometry"])
@pytest.mark.parametrize("channels", [32, 8, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_forward_of_each_dtype(
    emulation: Emulation,
    make_inputs: Callable[..., Any],
    error_of: Callable[..., float],
    dtype: torch.dtype,
    channels: int,
    own_geometry: bool,
    coordinates: int,
) -> None:
    geometry = dtype if own_geometry else None
    inputs = make_inputs(dtype, geometry=geometry, channels=channels, coordinates=coordinates, queries=11)
    assert error_of(emulation.forward(inputs), inputs.expected) < TOLERANCE[dtype]


BACKWARD_CASES = {
    "encoder": {"shapes": ((4, 6), (2, 3), (1, 2), (1, 1)), "batch": 3},
    "decoder": {"queries": 7},
    "3 levels of 3 points, 8 channels": {"shapes": ((4, 5), (3, 3), (1, 2)), "points": 3, "channels": 8},
    "40 channels": {"channels": 40, "queries": 5},
    "5 channels: single elements": {"channels": 5, "queries": 5},
    "levels of one row or column": {"shapes": ((1, 6), (6, 1), (1, 1), (2, 2)), "queries": 20},
}


@pytest.mark.parametrize("ordered", [False, True], ids=["atomics", "ordered"])
@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("case", BACKWARD_CASES)
def test_backward(
    emulation: Emulation,
    make_inputs: Callable[..., Any],
    error_of: Callable[..., float],
    case: str,
    coordinates: int,
    ordered: bool,
) -> None:
    inputs = make_inputs(coordinates=coordinates, **BACKWARD_CASES[case])
    grads = emulation.backward(inputs, ordered=ordered)
    for name, expected in inputs.expected_grads.items():
        assert error_of(grads[name], expected) < 5e-6, name


@pytest.mark.parametrize("ordered", [False, True], ids=["atomics", "ordered"])
@pytest.mark.parametrize("channels", [32, 4, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_backward_of_each_dtype(
    emulation: Emulation,
    make_inputs: Callable[..., Any],
    error_of: Callable[..., float],
    dtype: torch.dtype,
    channels: int,
    ordered: bool,
) -> None:
    inputs = make_inputs(dtype, channels=channels, queries=9)
    grads = emulation.backward(inputs, ordered=ordered)
    for name, expected in inputs.expected_grads.items():
        # only the ordered gradient of value is rounded to 16 bits by the kernel itself
        rounded = name == "value" and ordered
        tolerance = TOLERANCE[dtype] if rounded or dtype == torch.float64 else TOLERANCE[torch.float32]
        assert error_of(grads[name], expected) < 3 * tolerance, name


def test_ordered_backward_over_ranges_of_heads(
    emulation: Emulation, make_inputs: Callable[..., Any], error_of: Callable[..., float]
) -> None:
    inputs = make_inputs(**{**SMALL, "batch": 2, "heads": 3})
    whole = emulation.backward(inputs, ordered=True)["value"]
    parts = emulation.backward(inputs, ordered=True, heads_at_a_time=2)["value"]
    assert error_of(whole, inputs.expected_grads["value"]) < 5e-6
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(
    ("sizes", "begin", "expected"),
    [
        ({"batch": 1, "rows": 22223, "queries": 22223}, 0, 8),  # an image: all heads at once
        ({"batch": 16, "rows": 22223, "queries": 22223}, 0, 94),  # 2^25 points
        ({"batch": 16, "rows": 22223, "queries": 22223}, 94, 128),  # and the rest
        ({"batch": 16, "rows": 2**30, "queries": 1}, 2, 3),  # keys of two heads would not fit 32 bits
        ({"batch": 16, "rows": 10, "queries": 2**24}, 5, 6),  # one head at least
        ({"batch": 1, "rows": 10, "queries": 2**28}, 0, None),
    ],
)
def test_ranges_of_heads(
    emulation: Emulation, sizes: dict[str, int], begin: int, expected: int | None
) -> None:
    problem = Problem(heads=8, channels=32, levels=4, points=4, **sizes)
    end = ctypes.c_int64()
    function = emulation.library.emulation_head_range
    function.restype = ctypes.c_char_p
    error = function(ctypes.byref(problem), ctypes.c_int64(begin), ctypes.byref(end))
    if expected is None:
        assert b"fewer than 2^31" in error
    else:
        assert (error, end.value) == (None, expected)


@pytest.mark.parametrize("channels", [32, 8])
def test_strided_value(
    emulation: Emulation, make_inputs: Callable[..., Any], error_of: Callable[..., float], channels: int
) -> None:
    """Heads first in memory, rows padded, and the batch a broadcast: all read in place."""
    inputs = make_inputs(queries=9, heads=3, channels=channels)
    batch, rows, heads, _ = inputs.value.shape
    wide = torch.full((batch, heads, rows, channels + 4), float("nan"))
    wide[..., :channels] = inputs.value.transpose(1, 2)
    inputs.value = wide[..., :channels].transpose(1, 2)
    assert error_of(emulation.forward(inputs), inputs.expected) < TOLERANCE[torch.float32]

    inputs.value = inputs.value[:1].expand(batch, -1, -1, -1)
    inputs.compute_expected()
    assert error_of(emulation.forward(inputs), inputs.expected) < TOLERANCE[torch.float32]


def test_value_aligned_to_elements_only(
    emulation: Emulation, make_inputs: Callable[..., Any], error_of: Callable[..., float]
) -> None:
    inputs = make_inputs(queries=9)
    storage = torch.empty(inputs.value.numel() + 1)
    inputs.value = storage[1:].view(inputs.value.shape).copy_(inputs.value)
    assert inputs.value.data_ptr() % 16 != 0
    assert error_of(emulation.forward(inputs), inputs.expected) < TOLERANCE[torch.float32]
    grads = emulation.backward(inputs)
    assert error_of(grads["value"], inputs.expected_grads["value"]) < 5e-6


@pytest.mark.parametrize("channels", [32, 5])
@pytest.mark.parametrize("ordered", [False, True], ids=["atomics", "ordered"])
def test_points_far_outside_or_not_numbers_count_nothing(
    emulation: Emulation,
    make_inputs: Callable[..., Any],
    error_of: Callable[..., float],
    ordered: bool,
    channels: int,
) -> None:
    inputs = make_inputs(queries=12, channels=channels)
    wild = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -7.0, 12.0])
    flat = inputs.points.view(-1)
    flat[::3] = wild.repeat(flat.numel() // 8 + 1)[: flat[::3].numel()]
    inputs.compute_expected()
    assert error_of(emulation.forward(inputs), inputs.expected) < TOLERANCE[torch.float32]
    grads = emulation.backward(inputs, ordered=ordered)
    for name in ("value", "weights"):
        assert error_of(grads[name], inputs.expected_grads[name]) < 5e-6, name
    finite = inputs.points.isfinite().all(-1)
    assert error_of(grads["points"][finite], inputs.expected_grads["points"][finite]) < 5e-6
    assert torch.equal(grads["points"][~finite], torch.zeros_like(grads["points"][~finite]))


def test_points_on_pixel_centres_read_one_pixel(
    emulation: Emulation, make_inputs: Callable[..., Any]
) -> None:
    inputs = make_inputs(queries=12, batch=1, heads=1, shapes=((3, 4),), points=1)
    y, x = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    centres = torch.stack([(x + 0.5) / 4, (y + 0.5) / 3], -1).reshape(inputs.points.shape)
    inputs.points, inputs.weights = centres.float(), torch.ones_like(inputs.weights)
    torch.testing.assert_close(emulation.forward(inputs)[0], inputs.value[0, :, 0], rtol=0, atol=1e-6)


def test_empty_batch_and_queries(emulation: Emulation, make_inputs: Callable[..., Any]) -> None:
    for empty in ({"queries": 0}, {"batch": 0}):
        inputs = make_inputs(**{**SMALL, **empty})
        assert emulation.forward(inputs).numel() == 0
        grad = emulation.backward(inputs, ordered=True)["value"]
        assert torch.equal(grad, torch.zeros_like(inputs.value))


def test_limits_are_said(emulation: Emulation, make_inputs: Callable[..., Any]) -> None:
    inputs = make_inputs(**{**SMALL, "shapes": ((1, 1),) * 49})
    with pytest.raises(RuntimeError, match="at most 48 feature levels"):
        emulation.forward(inputs)
    inputs = make_inputs(**SMALL)
    inputs.shapes[0] = (0, 4)
    with pytest.raises(RuntimeError, match="heights and widths"):
        emulation.forward(inputs)


def test_emulator_refuses_a_load_outside_of_the_tensors(
    emulation: Emulation, make_inputs: Callable[..., Any]
) -> None:
    """The net under the tests above: were it not there, a wrong address could go unnoticed."""
    inputs = make_inputs(**SMALL)
    inputs.shapes[0] = (4, 4)  # four rows more than value has
    with pytest.raises(RuntimeError, match="leaves the tensors"):
        emulation.forward(inputs)
