"""The CUDA kernels on a GPU: every dtype against the reference in float64, odd shapes, and determinism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from groundingml import ops

pytestmark = pytest.mark.gpu

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
OUTPUT = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 5e-3}
GRADIENT = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DETECTOR = ((20, 26), (10, 13), (5, 7), (3, 4))

CASES = {
    "encoder": {"shapes": DETECTOR, "heads": 8},
    "decoder": {"shapes": DETECTOR, "heads": 8, "queries": 900},
    "5 levels of 3 points": {"shapes": (*DETECTOR, (3, 4)), "points": 3, "queries": 101},
    "1 level of 1 point, 1 query": {"shapes": ((17, 9),), "points": 1, "queries": 1},
    "64 channels": {"channels": 64, "queries": 50},
    "16 channels": {"channels": 16, "queries": 50},
    "40 channels": {"channels": 40, "queries": 50},
    "33 channels": {"channels": 33, "queries": 50},
    "1 channel, 3 heads": {"channels": 1, "heads": 3, "queries": 50},
    "17 levels": {"shapes": ((3, 2),) * 17, "points": 2, "queries": 50},
    "levels of one row or column": {"shapes": ((1, 9), (9, 1), (1, 1), (2, 2)), "queries": 50},
    "32 points on each level": {"points": 32, "queries": 20},
}
_EXPECTED: dict[tuple[Any, ...], Any] = {}


def run(inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of the op on the GPU."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.tensors().items()}
    op = ops.ms_deform_attn if inputs.reference is None else ops.ms_deform_attn_from_offsets
    output = op(leaves["value"], inputs.shapes, *list(leaves.values())[1:])
    grads = torch.autograd.grad(output, list(leaves.values()), inputs.grad_output)
    return output.detach(), dict(zip(leaves, grads, strict=True))


@pytest.fixture(autouse=True)
def _kernels() -> None:
    assert ops.status().cuda_archs, f"the ops have no CUDA kernels: {ops.status().reason}"


@pytest.fixture(params=[False, True], ids=["fast", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> Any:
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(
    make_inputs: Callable[..., Any],
    error_of: Callable[..., float],
    case: str,
    dtype: torch.dtype,
    coordinates: int,
    deterministic: bool,
) -> None:
    key = (case, dtype, coordinates)
    if key not in _EXPECTED:
        _EXPECTED.clear()  # computed once for both ways of the backward, which follow one another
        _EXPECTED[key] = make_inputs(dtype, coordinates=coordinates, **CASES[case])
    inputs = _EXPECTED[key].to("cuda")
    output, grads = run(inputs)
    assert output.dtype == dtype
    assert error_of(output, inputs.expected) < OUTPUT[dtype]
    for name, expected in inputs.expected_grads.items():
        assert grads[name].dtype == inputs.tensors()[name].dtype
        assert error_of(grads[name], expected) < GRADIENT[dtype], name


@pytest.mark.parametrize("coordinates", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_geometry_of_16_bits(
    make_inputs: Callable[..., Any], error_of: Callable[..., float], dtype: torch.dtype, coordinates: int
) -> None:
    inputs = make_inputs(dtype, geometry=dtype, coordinates=coordinates, queries=60).to("cuda")
    output, grads = run(inputs)
    assert error_of(output, inputs.expected) < OUTPUT[dtype]
    for name, expected in inputs.expected_grads.items():
        assert error_of(grads[name], expected) < GRADIENT[dtype], name


@pytest.mark.parametrize("mixed", ["points", "weights"])
def test_geometry_of_two_dtypes(
    make_inputs: Callable[..., Any], error_of: Callable[..., float], mixed: str
) -> None:
    inputs = make_inputs(torch.bfloat16, geometry=torch.bfloat16, queries=60)
    setattr(inputs, mixed, getattr(inputs, mixed).float())
    inputs = inputs.to("cuda")
    output, grads = run(inputs)
    assert error_of(output, inputs.expected) < OUTPUT[torch.bfloat16]
    assert grads[mixed].dtype == torch.float32


@pytest.mark.parametrize("coordinates", [0, 2, 4])
def test_gradcheck(make_inputs: Callable[..., Any], coordinates: int) -> None:
    inputs = make_inputs(
        torch.float64,
        coordinates=coordinates,
        queries=3,
        channels=4,
        batch=1,
        shapes=((4, 5), (2, 3)),
        points=2,
    ).to("cuda")
    leaves = [tensor.requires_grad_() for tensor in inputs.tensors().values()]
    op = ops.ms_deform_attn if coordinates == 0 else ops.ms_deform_attn_from_offsets
    assert torch.autograd.gradcheck(
        lambda value, *rest: op(value, inputs.shapes, *rest), leaves, nondet_tol=1e-12, eps=1e-7, atol=1e-5
    )


@pytest.mark.parametrize("coordinates", [0, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deterministic_backward_repeats_itself(
    make_inputs: Callable[..., Any], dtype: torch.dtype, coordinates: int
) -> None:
    """Many points share few pixels: the order of atomics would show at once."""
    inputs = make_inputs(
        dtype, coordinates=coordinates, shapes=((5, 5), (3, 3), (2, 2), (1, 1)), queries=2000
    ).to("cuda")
    torch.use_deterministic_algorithms(True)
    try:
        first, others = run(inputs)[1], [run(inputs)[1] for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        for name, grad in first.items():
            assert torch.equal(grad, other[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_repeats_itself(make_inputs: Callable[..., Any], dtype: torch.dtype) -> None:
    inputs = make_inputs(dtype, shapes=DETECTOR).to("cuda")
    first = run(inputs)[0]
    assert all(torch.equal(first, run(inputs)[0]) for _ in range(3))


def test_strided_value(make_inputs: Callable[..., Any], error_of: Callable[..., float]) -> None:
    inputs = make_inputs(queries=40, heads=4).to("cuda")
    batch, rows, heads, channels = inputs.value.shape
    wide = torch.full((batch, heads, rows, channels + 4), float("nan"), device="cuda")
    wide[..., :channels] = inputs.value.transpose(1, 2)
    inputs.value = wide[..., :channels].transpose(1, 2)
    output, grads = run(inputs)
    assert error_of(output, inputs.expected) < OUTPUT[torch.float32]
    assert error_of(grads["value"], inputs.expected_grads["value"]) < GRADIENT[torch.float32]


def test_everything_strided(make_inputs: Callable[..., Any], error_of: Callable[..., float]) -> None:
    inputs = make_inputs(queries=40)
    for name, tensor in inputs.tensors().items():
        setattr(inputs, name, tensor.cuda().movedim(0, -1).contiguous().movedim(-1, 0))
    inputs.grad_output = inputs.grad_output.cuda().transpose(0, 2).contiguous().transpose(0, 2)
    output, grads = run(inputs)
    assert error_of(output, inputs.expected) < OUTPUT[torch.float32]
    for name, expected in inputs.expected_grads.items():
        assert error_of(grads[name], expected) < GRADIENT[torch.float32], name


def test_misaligned_tensors(make_inputs: Callable[..., Any], error_of: Callable[..., float]) -> None:
    inputs = make_inputs(queries=40)
    for name, tensor in inputs.tensors().items():
        storage = torch.empty(tensor.numel() + 1, device="cuda")
        setattr(inputs, name, storage[1:].view(tensor.shape).copy_(tensor))
    inputs.grad_output = inputs.grad_output.cuda()
    output, grads = run(inputs)
    assert error_of(output, inputs.expected) < OUTPUT[torch.float32]
    assert error_of(grads["value"], inputs.expected_grads["value"]) < GRADIENT[torch.float32]


def test_points_that_are_not_numbers(make_inputs: Callable[..., Any], error_of: Callable[..., float]) -> None:
    inputs = make_inputs(queries=60)
    wild = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -7.0, 12.0])
    flat = inputs.points.view(-1)
    flat[::3] = wild.repeat(flat.numel() // 8 + 1)[: flat[::3].numel()]
    inputs.compute_expected()
    output, grads = run(inputs.to("cuda"))
    assert error_of(output, inputs.expected) < OUTPUT[torch.float32]
    assert error_of(grads["value"], inputs.expected_grads["value"]) < GRADIENT[torch.float32]


def test_empty(make_inputs: Callable[..., Any], deterministic: bool) -> None:
    for empty in ({"queries": 0}, {"batch": 0}):
        for coordinates in (0, 2):
            inputs = make_inputs(coordinates=coordinates, **empty).to("cuda")
            output, grads = run(inputs)
            assert output.numel() == 0
            assert torch.equal(grads["value"], torch.zeros_like(inputs.value))


def test_batch_beyond_one_launch(make_inputs: Callable[..., Any], error_of: Callable[..., float]) -> None:
    inputs = make_inputs(batch=65537, queries=1, heads=1, channels=4, shapes=((2, 2),), points=1).to("cuda")
    output, grads = run(inputs)
    assert error_of(output, inputs.expected) < OUTPUT[torch.float32]
    assert error_of(grads["value"], inputs.expected_grads["value"]) < GRADIENT[torch.float32]
