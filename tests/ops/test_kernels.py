"""The CPU kernels, with each instruction set, against the reference in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from groundingml import ops
from groundingml.ops import reference

BIG = ((10, 17), (5, 9), (3, 5), (2, 3))
# Largest error of output and of gradients, relative to the largest number in them.
# A location in float32 is good to 6e-8 of the image's size: 2.4e-6 pixels of a level 40 wide.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def with_gradients(inputs, grad_output, module=None):
    inputs = inputs.map(lambda tensor: tensor.detach().requires_grad_())
    output = inputs.call(module) if module else inputs.call()
    return [output.detach(), *torch.autograd.grad(output, inputs.tensors, grad_output.to(output.dtype))]


def assert_equals_reference(inputs, tolerance=None):
    torch.manual_seed(1)
    batch, queries = inputs.geometry[-1].shape[:2]
    grad_output = torch.randn(batch, queries, inputs.value.shape[2] * inputs.value.shape[3]).to(
        inputs.value.dtype
    )
    results = with_gradients(inputs, grad_output)
    expected = with_gradients(inputs.map(torch.Tensor.double), grad_output.double(), reference)
    tolerance = tolerance or TOLERANCE[inputs.value.dtype]
    for result, exact, argument in zip(results[1:], expected[1:], inputs.tensors, strict=True):
        assert result.dtype == argument.dtype
        assert result.shape == exact.shape
    for result, exact in zip(results, expected, strict=True):
        if exact.numel():
            error = (result.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-9)
            assert error < tolerance


@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(
            {"levels": BIG, "queries": 240, "heads": 8, "channels": 32}, id="an encoder: packed backward"
        ),
        pytest.param(
            {"levels": BIG, "queries": 9, "heads": 8, "channels": 32}, id="a decoder: in-place backward"
        ),
        pytest.param({"channels": 1, "points": 1}, id="one channel, one point"),
        pytest.param({"channels": 5, "points": 3}, id="channels below a vector"),
        pytest.param({"channels": 64, "points": 8}, id="two blocks of channels"),
        pytest.param({"channels": 28, "heads": 1}, id="whole vectors, then a rest"),
        pytest.param(
            {"levels": (*BIG, (1, 1)), "points": 5, "queries": 3}, id="five levels, one of a single pixel"
        ),
        pytest.param({"levels": ((1, 40),), "points": 2}, id="a level one pixel high"),
        pytest.param({"levels": ((40, 1),), "points": 7, "batch": 1}, id="a level one pixel wide"),
        pytest.param({"points": 40, "queries": 2}, id="many points"),
        pytest.param({"heads": 19, "queries": 3, "channels": 32}, id="more heads than are located together"),
    ],
)
def test_equals_reference(make_inputs, cpu_capability, coordinates, sizes):
    assert_equals_reference(make_inputs(coordinates, **sizes))


@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("channels", [32, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(make_inputs, cpu_capability, coordinates, channels, dtype):
    for queries in (3, 40):  # in place, packed
        assert_equals_reference(make_inputs(coordinates, channels=channels, dtype=dtype, queries=queries))


@pytest.mark.parametrize("coordinates", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_geometry_in_16_bits(make_inputs, compiled, coordinates, dtype):
    inputs = make_inputs(coordinates, dtype=dtype).map(lambda tensor: tensor.to(dtype))
    assert_equals_reference(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [3, 40])
@pytest.mark.parametrize("coordinates", [0, 2])
def test_any_strides(make_inputs, compiled, coordinates, queries, dtype):
    inputs = make_inputs(coordinates, dtype=dtype, queries=queries)
    contiguous = inputs.call()
    # value as (B, M, S, D) in memory, with channels that are not adjacent, as a slice of something wider.
    value = inputs.value
    wide = torch.randn(*value.shape[:-1], 2 * value.shape[-1]).to(dtype)
    wide[..., : value.shape[-1]] = value
    for layout in (
        value.transpose(1, 2).contiguous().transpose(1, 2),
        value.transpose(2, 3).contiguous().transpose(2, 3),
        wide[..., : value.shape[-1]],
    ):
        assert not layout.is_contiguous()
        inputs.value = layout
        inputs.geometry = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in inputs.geometry]
        assert torch.equal(inputs.call(), contiguous)
        assert_equals_reference(inputs)


def test_expanded_value(make_inputs, compiled):
    """Stride 0: one image for the whole batch."""
    inputs = make_inputs(batch=3)
    inputs.value = inputs.value[:1].expand(3, -1, -1, -1)
    assert_equals_reference(inputs)


@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_nothing_to_do(make_inputs, compiled, coordinates, empty):
    inputs = make_inputs(coordinates, **{empty: 0}).map(torch.Tensor.requires_grad_)
    output = inputs.call()
    assert output.numel() == 0
    output.sum().backward()
    for tensor in inputs.tensors:
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("far", [math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**31, 3.0])
def test_points_nowhere_near_the_image_sample_nothing(make_inputs, cpu_capability, far):
    inputs = make_inputs(channels=32)
    inputs.geometry[0][:, ::2, :, :, 1:] = far
    inputs.geometry[0][:, 1::3, :, 0, 2, 1] = far
    assert torch.isfinite(inputs.call()).all()
    assert_equals_reference(inputs)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_infinite_offsets_sample_nothing(make_inputs, cpu_capability, coordinates):
    inputs = make_inputs(coordinates, channels=32)
    inputs.geometry[1][:, ::2, :, :, 1:] = math.inf
    inputs.geometry[1][:, 1::3, :, 0, 2, 1] = math.nan
    assert torch.isfinite(inputs.call()).all()
    inputs = inputs.map(torch.Tensor.requires_grad_)
    inputs.call().sum().backward()
    for tensor in inputs.tensors:
        assert torch.isfinite(tensor.grad).all()


def test_points_outside_do_not_touch_infinite_pixels(make_inputs, cpu_capability):
    """Their weight is 0, and 0 * infinity is NaN: the pixel must not be read at all."""
    inputs = make_inputs(levels=((4, 4),), channels=32)
    inputs.value[:, 0] = math.inf
    inputs.geometry[0][:] = 0.5  # between the four pixels in the middle
    inputs.geometry[0][..., 1, :] = -7.0
    assert torch.isfinite(inputs.call()).all()


@pytest.mark.parametrize("queries", [3, 40])  # in place, packed
@pytest.mark.parametrize("channels", [32, 5])
def test_points_outside_give_no_gradient_even_if_it_is_infinite(
    make_inputs, cpu_capability, channels, queries
):
    """Their weight is 0, and 0 * infinity is NaN: nothing may be added to the pixel at the border."""
    inputs = make_inputs(levels=((4, 4),), channels=channels, queries=queries)
    inputs.geometry[0][:] = 0.5  # between the four pixels in the middle
    inputs.geometry[0][..., 1, :] = -7.0
    inputs.geometry[0][:, 0] = 9.0
    grad_output = torch.ones(2, queries, 3 * channels)
    grad_output[:, 0] = math.inf  # of a query that samples nothing
    grad_output[:, 1] = math.inf
    grads = with_gradients(inputs, grad_output)[1:]
    middle = torch.zeros(4, 4, dtype=torch.bool)
    middle[1:3, 1:3] = True
    assert (grads[0][:, ~middle.flatten()] == 0).all()
    assert not grads[0][:, middle.flatten()].isfinite().any()
    for grad in grads[1:]:
        assert (grad[:, 0] == 0).all()
        assert (grad[:, :, :, :, 1] == 0).all()
        assert grad[:, 2:].isfinite().all()


def test_a_nan_weight_is_not_hidden(make_inputs, cpu_capability):
    inputs = make_inputs(2)
    inputs.geometry[2][0, 0, 0, 0] = math.nan
    output = inputs.call().unflatten(2, (3, 8))
    assert output[0, 0, 0].isnan().all()
    assert output.isnan().sum() == 8


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmax_of_any_logits(make_inputs, cpu_capability, scale):
    inputs = make_inputs(2, points=5)
    inputs.geometry[2] *= scale
    inputs.geometry[2][:, 1] = -math.inf
    inputs.geometry[2][:, 1, :, 3] = 0  # one point takes all
    expected = inputs.map(torch.Tensor.double).call(reference)
    torch.testing.assert_close(inputs.call().double(), expected, rtol=1e-5, atol=1e-5)


def test_half_conversions_are_exact(cpu_capability):
    """A single pixel sampled at its centre with weight 1 comes back unchanged: all 65,536 of them."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        for channels in (32, 1):
            value = bits.view(dtype).reshape(1, 1, -1, channels)
            geometry = [
                torch.full((1, 1, value.shape[2], 1, 1, 2), 0.5),
                torch.ones(1, 1, value.shape[2], 1, 1),
            ]
            output = torch.ops.groundingml.ms_deform_attn(value, [1, 1], *geometry).flatten()
            # The three other corners have weight 0, which turns infinity into NaN.
            finite = value.flatten().isfinite()
            assert torch.equal(output[finite], value.flatten()[finite])
            assert output[~finite].isfinite().sum() == 0


@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("queries", [4, 30])
def test_gradients_numerically(make_inputs, cpu_capability, coordinates, queries):
    # Away from pixel centres, where bilinear interpolation has kinks.
    inputs = make_inputs(
        coordinates,
        levels=((4, 5), (2, 3)),
        batch=1,
        queries=queries,
        heads=2,
        channels=3,
        points=2,
        dtype=torch.float64,
    )
    inputs = inputs.map(torch.Tensor.requires_grad_)

    def call(*tensors):
        copy = type(inputs)(coordinates, tensors[0], inputs.levels, list(tensors[1:]))
        return copy.call()

    assert torch.autograd.gradcheck(call, inputs.tensors, eps=1e-7, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("queries", [9, 240])
@pytest.mark.parametrize("coordinates", [0, 4])
def test_same_bits_at_any_number_of_threads(make_inputs, cpu_capability, coordinates, queries):
    inputs = make_inputs(coordinates, levels=BIG, queries=queries, heads=8, channels=32)
    grad_output = torch.randn(2, queries, 256)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = with_gradients(inputs, grad_output)
        for count in (1, 2, 3, 7, 40, 100):  # up to more than batch * heads * levels
            torch.set_num_threads(count)
            for result, same in zip(with_gradients(inputs, grad_output), expected, strict=True):
                assert torch.equal(result, same)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("channels", [32, 3])
def test_more_than_2_to_the_31_elements(compiled, channels):
    """Rows far apart in a large buffer whose pages are hardly touched, so it takes little memory."""
    height, width, stride = 40, 50, 1_200_000
    buffer = torch.empty(height * width * stride, dtype=torch.bfloat16)  # 2.4e9 elements
    value = buffer.as_strided((1, height * width, 1, channels), (0, stride, 0, 1))
    torch.manual_seed(0)
    value.copy_(torch.randn(value.shape))
    geometry = [torch.rand(1, 500, 1, 1, 4, 2), torch.randn(1, 500, 1, 1, 4)]
    compact = value.contiguous()
    forward, backward = torch.ops.groundingml.ms_deform_attn, torch.ops.groundingml.ms_deform_attn_backward
    output = forward(value, [height, width], *geometry)
    assert torch.equal(output, forward(compact, [height, width], *geometry))
    gradients = backward(output, value, [height, width], *geometry, False)
    for result, expected in zip(
        gradients, backward(output, compact, [height, width], *geometry, False), strict=True
    ):
        assert torch.equal(result, expected)


def test_an_output_above_32_mib(make_inputs, compiled):
    """So large a one asks the system for larger pages."""
    many = 12_000
    inputs = make_inputs(batch=1, queries=3, channels=32, heads=8)
    value, locations, weights = inputs.tensors
    repeated = [tensor.repeat_interleave(many, dim=1) for tensor in (locations, weights)]
    output = ops.ms_deform_attn(value, inputs.levels, *repeated)
    assert output.numel() * output.element_size() > 32 << 20
    assert torch.equal(output, inputs.call().repeat_interleave(many, dim=1))
