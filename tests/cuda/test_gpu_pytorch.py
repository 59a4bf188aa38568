"""The CUDA kernels as PyTorch ops: streams, devices, graph capture, compilation, opcheck, huge tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from groundingml import ops

pytestmark = pytest.mark.gpu


def op_of(inputs: Any) -> Callable[..., Tensor]:
    return ops.ms_deform_attn if inputs.reference is None else ops.ms_deform_attn_from_offsets


def forward(inputs: Any) -> Tensor:
    return op_of(inputs)(inputs.value, inputs.shapes, *list(inputs.tensors().values())[1:])


def flat_arguments(inputs: Any) -> tuple[Any, ...]:
    flat = [size for shape in inputs.shapes for size in shape]
    value, *rest = inputs.tensors().values()
    return (value, flat, *rest)


@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(make_inputs: Callable[..., Any], dtype: torch.dtype, coordinates: int) -> None:
    inputs = make_inputs(dtype, coordinates=coordinates, queries=5, channels=8, shapes=((4, 5), (2, 3))).to(
        "cuda"
    )
    for tensor in inputs.tensors().values():
        tensor.requires_grad_()
    name = "ms_deform_attn" if coordinates == 0 else "ms_deform_attn_from_offsets"
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.library.opcheck(getattr(torch.ops.groundingml, name).default, flat_arguments(inputs), **tolerance)


def test_runs_on_the_current_stream(make_inputs: Callable[..., Any], error_of: Callable[..., float]) -> None:
    """The input is filled on a side stream after a long wait: work on any other stream would see it empty."""
    inputs = make_inputs(queries=60).to("cuda")
    filled = inputs.value
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        inputs.value = torch.zeros_like(filled)
        torch.cuda._sleep(100_000_000)
        inputs.value.copy_(filled)
        output = forward(inputs)
    stream.synchronize()
    assert error_of(output, inputs.expected) < 2e-6


def test_does_not_wait_for_the_gpu(make_inputs: Callable[..., Any]) -> None:
    inputs = make_inputs(coordinates=4, queries=60).to("cuda")
    leaves = [tensor.requires_grad_() for tensor in inputs.tensors().values()]
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        torch.autograd.grad(forward(inputs).sum(), leaves)  # warm up
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.cuda._sleep(200_000_000)
            sleeping = torch.cuda.Event()
            sleeping.record()
            torch.autograd.grad(forward(inputs).sum(), leaves)
            assert not sleeping.query(), "the op waited for the GPU"
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.use_deterministic_algorithms(False)
            torch.cuda.synchronize()


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs two GPUs")
def test_runs_on_the_tensors_device(make_inputs: Callable[..., Any], error_of: Callable[..., float]) -> None:
    inputs = make_inputs(queries=60).to("cuda:1")
    with torch.cuda.device(0):
        output = forward(inputs)
        assert torch.cuda.current_device() == 0
    assert output.device == torch.device("cuda:1")
    assert error_of(output, inputs.expected) < 2e-6


def test_tensors_on_two_devices_are_refused(make_inputs: Callable[..., Any]) -> None:
    inputs = make_inputs(queries=5)
    inputs.value = inputs.value.cuda()
    with pytest.raises((ValueError, RuntimeError), match="device"):
        forward(inputs)


@pytest.mark.parametrize("deterministic", [False, True])
def test_captured_in_a_graph(
    make_inputs: Callable[..., Any], error_of: Callable[..., float], deterministic: bool
) -> None:
    """Forward and backward are captured once and replayed with other values."""
    inputs = make_inputs(coordinates=2, queries=60).to("cuda")
    leaves = [tensor.requires_grad_() for tensor in inputs.tensors().values()]

    def step() -> tuple[Tensor, ...]:
        output = forward(inputs)
        return output, *torch.autograd.grad(output, leaves, inputs.grad_output)

    torch.use_deterministic_algorithms(deterministic)
    try:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
    finally:
        torch.use_deterministic_algorithms(False)
    other = make_inputs(coordinates=2, queries=60, seed=1)
    with torch.no_grad():
        for leaf, tensor in zip(leaves, other.tensors().values(), strict=True):
            leaf.copy_(tensor)
        inputs.grad_output.copy_(other.grad_output)
    graph.replay()
    torch.cuda.synchronize()
    assert error_of(results[0], other.expected) < 2e-6
    for result, (name, expected) in zip(results[1:], other.expected_grads.items(), strict=True):
        assert error_of(result, expected) < 1e-5, name


@pytest.mark.parametrize("coordinates", [0, 4])
def test_compiles_without_graph_breaks(
    make_inputs: Callable[..., Any], error_of: Callable[..., float], coordinates: int
) -> None:
    inputs = make_inputs(coordinates=coordinates, queries=60).to("cuda")
    leaves = [tensor.requires_grad_() for tensor in inputs.tensors().values()]
    op, shapes = op_of(inputs), inputs.shapes
    compiled = torch.compile(lambda value, *rest: op(value * 2, shapes, *rest) / 2, fullgraph=True)
    output = compiled(*leaves)
    grads = torch.autograd.grad(output, leaves, inputs.grad_output)
    assert error_of(output, inputs.expected) < 2e-6
    for grad, (name, expected) in zip(grads, inputs.expected_grads.items(), strict=True):
        assert error_of(grad, expected) < 1e-5, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_keeps_locations_wide(
    make_inputs: Callable[..., Any], error_of: Callable[..., float], dtype: torch.dtype
) -> None:
    inputs = make_inputs(queries=60).to("cuda")
    with torch.autocast("cuda", dtype=dtype):
        output = forward(inputs)
    assert output.dtype == dtype
    assert error_of(output, inputs.expected) < (6e-4 if dtype == torch.float16 else 5e-3)


def test_too_many_levels_are_refused(make_inputs: Callable[..., Any]) -> None:
    inputs = make_inputs(queries=2, shapes=((1, 1),) * 49, points=1).to("cuda")
    with pytest.raises((RuntimeError, ValueError), match="at most 48 feature levels"):
        torch.ops.groundingml.ms_deform_attn(*flat_arguments(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "side", [3000, 12000], ids=["over 2^31 elements in a batch", "over 2^32 in one sample"]
)
def test_beyond_2_to_31_elements(error_of: Callable[..., float], side: int, dtype: torch.dtype) -> None:
    """One level of side x side pixels; only its end is compared, where 32-bit addresses would wrap."""
    heads, channels, batch = (8, 32, 2) if side < 10000 else (1, 32, 1)
    rows = side * side
    needed = batch * rows * heads * channels * torch.finfo(dtype).bits // 8
    if needed * 1.1 > torch.cuda.mem_get_info()[0]:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    assert batch * rows * heads * channels > 2**31
    value = torch.zeros(batch, rows, heads, channels, dtype=dtype, device="cuda")
    last = value[-1, -side * 4 :]  # the last four rows of pixels of the last sample
    last.copy_(torch.rand(last.shape, device="cuda") - 0.5)
    locations = torch.rand(batch, 50, heads, 1, 4, 2, device="cuda")
    locations[..., 1] = 1 - locations[..., 1] * (3 / side)
    weights = torch.rand(batch, 50, heads, 1, 4, device="cuda")
    output = ops.ms_deform_attn(value, [(side, side)], locations, weights)

    cut = locations[-1:].double()
    cut[..., 1] = (cut[..., 1] * side - (side - 4)) / 4
    expected = ops.reference.ms_deform_attn(last[None].double(), [(4, side)], cut, weights[-1:].double())
    # a float32 location resolves 1/2^24 of the image: side / 2^24 pixels
    assert error_of(output[-1:], expected.cpu()) < (5e-3 if dtype == torch.bfloat16 else 4 * side / 2**24)
