"""The compiled deformable convolution against the reference in float64, and inside PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from groundingml.ops import library, modulated_deform_conv, reference

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def make_inputs(
    channels: int = 33,
    size: tuple[int, int] = (7, 9),
    kernel: tuple[int, int] = (3, 3),
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
) -> tuple[list[Tensor], tuple[int, int, int]]:
    """x, weight, bias, offsets, mask; many taps look outside of the map. Geometry is at least float32."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    out = [
        (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(size, kernel, strict=True)
    ]
    taps = kernel[0] * kernel[1]
    x, weight, bias, offsets, mask = (
        torch.randn(shape, generator=generator, dtype=wide)
        for shape in (
            (batch, channels, *size),
            (5, channels, *kernel),
            (5,),
            (batch, 2 * taps, *out),
            (batch, taps, *out),
        )
    )
    weight /= (channels * taps) ** 0.5
    return [x.to(dtype), weight.to(dtype), bias.to(dtype), offsets * 3, mask], (stride, padding, dilation)


def with_gradients(call, tensors, geometry, grad_output):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = call(*leaves, *geometry)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output.to(output.dtype))]


CASES = {
    "3x3": {},
    "one channel": {"channels": 1},
    "a whole vector of channels and stride 2": {"channels": 32, "stride": 2},
    "dilation": {"channels": 4, "dilation": 2, "padding": 2},
    "wide kernel without padding": {"channels": 17, "kernel": (2, 5), "padding": 0},
    "1x1": {"channels": 8, "kernel": (1, 1), "padding": 0},
    "more output pixels than are taken at once": {"channels": 3, "size": (25, 27)},
    "a map of one pixel": {"size": (1, 1)},
    "more channels than a block of the multiplication": {"channels": 150, "size": (5, 4)},
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(cpu_capability, case, dtype):
    tensors, geometry = make_inputs(dtype=dtype, **CASES[case])
    exact = [tensor.double() for tensor in tensors]
    grad_output = torch.randn(modulated_deform_conv(*tensors, *geometry).shape).to(dtype)
    expected = with_gradients(reference.modulated_deform_conv, exact, geometry, grad_output.double())
    found = with_gradients(modulated_deform_conv, tensors, geometry, grad_output)
    for name, result, exactly in zip(
        ("output", "x", "weight", "bias", "offsets", "mask"), found, expected, strict=True
    ):
        assert result.shape == exactly.shape, name
        error = (result.double() - exactly).norm() / exactly.norm().clamp(min=1e-9)
        assert error < TOLERANCE[dtype], name


def test_channels_last_is_read_as_it_lies(compiled):
    tensors, geometry = make_inputs()
    expected = modulated_deform_conv(*tensors, *geometry)
    tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    assert torch.equal(modulated_deform_conv(*tensors, *geometry), expected)
    wide = torch.full((2, 33, 7, 12), float("nan"))
    wide[..., :9] = tensors[0]
    tensors[0] = wide[..., :9]
    assert torch.equal(modulated_deform_conv(*tensors, *geometry), expected)


def test_gradients_numerically(cpu_capability):
    tensors, geometry = make_inputs(channels=5, size=(4, 5), dtype=torch.float64, batch=1)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(
        lambda *a: modulated_deform_conv(*a, *geometry), leaves, eps=1e-7, atol=1e-5, fast_mode=True
    )


@pytest.mark.parametrize("size", [(5, 7), (25, 27)])
def test_same_bits_at_any_number_of_threads(cpu_capability, size):
    tensors, geometry = make_inputs(channels=70, size=size)
    grad_output = torch.randn(2, 5, *size)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = with_gradients(modulated_deform_conv, tensors, geometry, grad_output)
        for threads in (1, 2, 3, 7, 40):
            torch.set_num_threads(threads)
            found = with_gradients(modulated_deform_conv, tensors, geometry, grad_output)
            for result, same in zip(found, expected, strict=True):
                assert torch.equal(result, same)
    finally:
        torch.set_num_threads(before)


def test_taps_far_outside_or_not_numbers_count_nothing(cpu_capability):
    tensors, geometry = make_inputs()
    wild = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e9, 40.0])
    flat = tensors[3].view(-1)
    flat[::5] = wild.repeat(flat.numel())[: flat[::5].numel()]
    expected = reference.modulated_deform_conv(*tensors, *geometry)
    found = with_gradients(modulated_deform_conv, tensors, geometry, torch.ones_like(expected))
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    assert all(gradient.isfinite().all() for gradient in found)


def test_an_infinite_pixel_harms_only_those_who_look_at_it(cpu_capability):
    tensors, geometry = make_inputs(size=(5, 60))
    tensors[3].zero_()
    tensors[3][:, :, :, 30:] = 100.0  # these look at nothing
    tensors[0][:, :, :, :3] = float("inf")
    found = modulated_deform_conv(*tensors, *geometry)
    assert found[..., 10:].isfinite().all()
    torch.testing.assert_close(found[:, :, :, 30], tensors[2][:, None].expand(2, 5, 5))


def test_an_empty_batch(compiled):
    tensors, geometry = make_inputs(batch=0)
    found = with_gradients(modulated_deform_conv, tensors, geometry, torch.zeros(0, 5, 7, 9))
    assert found[0].shape == (0, 5, 7, 9)
    assert torch.equal(found[2], torch.zeros_like(tensors[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(compiled, dtype):
    (x, weight, _, offsets, mask), geometry = make_inputs(channels=4, dtype=dtype)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, offsets, mask)]
    torch.library.opcheck(torch.ops.groundingml.modulated_deform_conv.default, (*leaves, *geometry))
    plain = [tensor.detach() for tensor in leaves]
    backward = torch.ops.groundingml.modulated_deform_conv_backward.default
    torch.library.opcheck(backward, (torch.ones(2, 5, 7, 9, dtype=dtype), *plain, *geometry, False))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(compiled, dynamic):
    torch._dynamo.reset()

    def layer(x, weight, bias, offsets, mask):
        return modulated_deform_conv(x * 2, weight, bias, offsets, mask.sigmoid(), 1, 1).relu()

    traced = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in ((7, 9), (5, 6)):
        tensors, _ = make_inputs(channels=4, size=size)
        grad_output = torch.randn(2, 5, *size)
        for eager, compiled_result in zip(
            with_gradients(layer, tensors, (), grad_output),
            with_gradients(traced, tensors, (), grad_output),
            strict=True,
        ):
            torch.testing.assert_close(compiled_result, eager, rtol=0, atol=0)


def test_exports_with_dynamic_sizes(compiled):
    class Layer(torch.nn.Module):
        def forward(self, x, weight, bias, offsets, mask):
            return modulated_deform_conv(x, weight, bias, offsets, mask, 1, 1)

    tensors, geometry = make_inputs(channels=4)
    size = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(Layer(), tuple(tensors), dynamic_shapes=(size, None, None, size, size))
    other, _ = make_inputs(channels=4, size=(11, 5))
    torch.testing.assert_close(program.module()(*other), modulated_deform_conv(*other, *geometry))


def test_autocast_keeps_offsets_accurate(compiled):
    tensors, geometry = make_inputs(size=(40, 300))
    expected = modulated_deform_conv(*tensors, *geometry)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        found = modulated_deform_conv(*leaves, *geometry)
        coarse = modulated_deform_conv(
            *tensors[:3], *(tensor.bfloat16().float() for tensor in tensors[3:]), *geometry
        )
    found.sum().backward()
    assert found.dtype == torch.bfloat16
    error, coarse_error = ((result - expected).abs().mean() for result in (found.float(), coarse.float()))
    assert error < coarse_error
    assert all(leaf.grad.dtype == leaf.dtype for leaf in leaves)


def test_the_reference_takes_over_where_nothing_is_compiled(compiled, monkeypatch):
    tensors, geometry = make_inputs()
    expected = modulated_deform_conv(*tensors, *geometry)
    monkeypatch.setattr(library, "_LIBRARY", library._Library(frozenset({"cpu"}), "", None))
    assert torch.equal(modulated_deform_conv(*tensors, *geometry), expected)
    monkeypatch.setattr(library, "_LIBRARY", library._Library(frozenset(), "", None))
    torch.testing.assert_close(modulated_deform_conv(*tensors, *geometry), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("position", "change", "error", "said"),
    [
        (1, lambda t: t.double(), TypeError, "weight must be torch.float32 like x, got torch.float64"),
        (2, lambda t: t[:4], ValueError, r"bias must have shape \(O,\) = \(5,\), got \(4,\)"),
        (3, lambda t: t.half(), TypeError, "offsets must be torch.float32 when x is torch.float32"),
        (4, lambda t: t.to("meta"), ValueError, "mask is on meta but x is on cpu"),
        (0, lambda t: t.int(), TypeError, "x must be float64, float32, float16 or bfloat16, got torch.int32"),
        (1, lambda t: t[:, :, :0], ValueError, "channels, height, width and taps must not be 0"),
    ],
)
def test_wrong_arguments_are_named(position, change, error, said):
    tensors, geometry = make_inputs()
    tensors[position] = change(tensors[position])
    for call in (modulated_deform_conv, reference.modulated_deform_conv):
        with pytest.raises(error, match=said):
            call(*tensors, *geometry)


def test_impossible_geometry_is_named():
    tensors, _ = make_inputs()
    with pytest.raises(ValueError, match=r"stride and dilation must be positive .* got stride 0"):
        modulated_deform_conv(*tensors, 0, 1)
    with pytest.raises(ValueError, match=r"kernel of 3 x 3 taps is larger than the padded x \(2, 33, 7, 9\)"):
        modulated_deform_conv(*tensors, 1, 0, dilation=4)


def test_the_compiled_op_guards_itself(compiled):
    """torch.ops.groundingml.* can be called without the Python checks; it must not read out of bounds."""
    (x, weight, _, offsets, mask), geometry = make_inputs()
    op = torch.ops.groundingml.modulated_deform_conv
    for arguments, said in (
        ((x, weight[:, :4], offsets, mask), "with C = 33 channels"),
        ((x, weight, offsets[:, :17], mask), r"offsets must have shape \(2, 18, 7, 9\)"),
        ((x, weight, offsets, mask[:, :, :6]), r"mask must have shape \(2, 9, 7, 9\)"),
        ((x, weight.half(), offsets, mask), "weight must have x's dtype"),
        ((x, weight, offsets.double(), mask), "offsets must have x's dtype"),
    ):
        with pytest.raises(RuntimeError, match=said):
            op(*arguments, *geometry)
    with pytest.raises(RuntimeError, match="grad_output must have shape"):
        torch.ops.groundingml.modulated_deform_conv_backward(
            torch.ones(2, 4, 7, 9), x, weight, offsets, mask, *geometry, False
        )
