"""The ops inside PyTorch: autograd, autocast, fake tensors, torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch

from groundingml import ops

pytestmark = pytest.mark.usefixtures("compiled")

FLAT = [7, 9, 4, 5]  # make_inputs' levels


def overload(coordinates, backward=False):
    name = "ms_deform_attn_from_offsets" if coordinates else "ms_deform_attn"
    return getattr(torch.ops.groundingml, name + ("_backward" if backward else "")).default


class Layer(torch.nn.Module):
    """The op between two others, with level sizes taken from tensors' shapes."""

    def forward(self, value, geometry, images):
        levels = [image.shape[-2:] for image in images]
        call = ops.ms_deform_attn_from_offsets if len(geometry) == 3 else ops.ms_deform_attn
        return call(value * 2, levels, *geometry).relu()


def images_of(inputs):
    return [torch.zeros(1, height, width) for height, width in inputs.levels]


@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(make_inputs, coordinates, dtype):
    inputs = make_inputs(coordinates, dtype=dtype).map(torch.Tensor.requires_grad_)
    torch.library.opcheck(overload(coordinates), (inputs.value, FLAT, *inputs.geometry))
    inputs = inputs.map(torch.Tensor.detach)
    grad_output = torch.ones(2, 13, 24, dtype=dtype)
    arguments = (grad_output, inputs.value, FLAT, *inputs.geometry, False)
    torch.library.opcheck(overload(coordinates, backward=True), arguments)


@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(make_inputs, coordinates, dynamic):
    torch._dynamo.reset()
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for queries in (13, 6):
        inputs = make_inputs(coordinates, queries=queries).map(torch.Tensor.requires_grad_)
        results = []
        for run in (layer, compiled):
            output = run(inputs.value, inputs.geometry, images_of(inputs))
            results.append([output, *torch.autograd.grad(output.sum(), inputs.tensors)])
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager, rtol=0, atol=0)


@pytest.mark.slow
def test_compiles_with_inductor(make_inputs):
    torch._dynamo.reset()
    inputs = make_inputs(2).map(torch.Tensor.requires_grad_)
    arguments = (inputs.value, inputs.geometry, images_of(inputs))
    expected, result = Layer()(*arguments), torch.compile(Layer(), fullgraph=True)(*arguments)
    torch.testing.assert_close(result, expected)
    for traced, eager in zip(
        torch.autograd.grad(result.sum(), inputs.tensors),
        torch.autograd.grad(expected.sum(), inputs.tensors),
        strict=True,
    ):
        torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize("coordinates", [0, 4])
def test_exports_with_dynamic_shapes(make_inputs, coordinates, tmp_path):
    """Number of queries and size of the image stay open, also after saving and loading."""
    auto = torch.export.Dim.AUTO
    inputs = make_inputs(coordinates)
    program = torch.export.export(
        Layer(),
        (inputs.value, inputs.geometry, images_of(inputs)),
        dynamic_shapes=(
            {1: auto},
            [{1: auto} for _ in inputs.geometry],
            [{1: auto, 2: auto} for _ in inputs.levels],
        ),
    )
    path = tmp_path / "layer.pt2"
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    other = make_inputs(coordinates, levels=((5, 11), (3, 6)), queries=21)
    arguments = (other.value, other.geometry, images_of(other))
    torch.testing.assert_close(loaded(*arguments), Layer()(*arguments))


@pytest.mark.parametrize("coordinates", [0, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_geometry_accurate(make_inputs, coordinates, dtype):
    inputs = make_inputs(coordinates, levels=((60, 80), (30, 40)))
    expected = inputs.call()
    with torch.autocast("cpu", dtype=dtype):
        output = inputs.call()
        coarse = inputs.map(lambda tensor: tensor.to(dtype)).call()
    assert output.dtype == dtype
    error, coarse_error = ((result.float() - expected).abs().max() for result in (output, coarse))
    assert error < 0.03
    assert coarse_error > 5 * error  # what casting the locations too would cost


def test_autocast_of_mixed_dtypes_and_gradients(make_inputs):
    inputs = make_inputs(2)
    inputs.geometry[1] = inputs.geometry[1].half()
    inputs = inputs.map(torch.Tensor.requires_grad_)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = inputs.call()
    output.sum().backward()
    assert output.dtype == torch.bfloat16
    for tensor in inputs.tensors:
        assert tensor.grad.dtype == tensor.dtype
        assert tensor.grad.abs().sum() > 0


def test_autocast_leaves_double_alone(make_inputs):
    inputs = make_inputs(2, dtype=torch.float64)
    expected = inputs.call()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(inputs.call(), expected)


@pytest.mark.parametrize("coordinates", [0, 2])
@pytest.mark.parametrize("deterministic", [False, True])
def test_backward_is_told_about_determinism(make_inputs, coordinates, deterministic):
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is overload(coordinates, backward=True):
                seen.append(args[-1])
            return func(*args, **(kwargs or {}))

    inputs = make_inputs(coordinates).map(torch.Tensor.requires_grad_)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with Recorder():
            inputs.call().sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)
    assert seen == [deterministic]


def test_gradients_only_where_asked_for(make_inputs):
    inputs = make_inputs(2)
    inputs.value.requires_grad_()
    inputs.call().sum().backward()
    assert inputs.value.grad is not None
    assert all(tensor.grad is None for tensor in inputs.geometry)
