from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from groundingml.ops.deform_conv import modulated_deform_conv, reread

DATA = Path(__file__).parent / "data" / "modulated_deform_conv"
CASES = json.loads(DATA.with_suffix(".json").read_text())["cases"]


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_equals_the_reference(number, device):
    """torchvision's op, after too large offsets and masks were read as GLIP's CUDA kernel does."""
    with np.load(DATA.with_suffix(".npz")) as file:
        x, weight, bias, offsets, mask, expected = (
            torch.from_numpy(file[f"{number}_{name}"]).to(device)
            for name in ("x", "w", "b", "offset", "mask", "out")
        )
    height, width = CASES[number]["out_hw"]
    offsets, mask = reread(offsets, height, width), reread(mask, height, width)
    found = modulated_deform_conv(x, weight, bias, offsets, mask, CASES[number]["stride"], padding=1)
    assert torch.allclose(found, expected, atol=2e-5, rtol=1e-4)


def inputs(dtype: torch.dtype = torch.float32, stride: int = 1) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    height, width = (-(-size // stride) for size in (5, 6))
    return (
        torch.randn(2, 3, 5, 6, dtype=dtype),
        torch.randn(4, 3, 3, 3, dtype=dtype),
        torch.randn(4, dtype=dtype),
        2 * torch.randn(2, 18, height, width, dtype=dtype),
        torch.rand(2, 9, height, width, dtype=dtype),
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_without_offsets_it_is_a_convolution(stride, bias):
    x, weight, added, offsets, mask = inputs(stride=stride)
    found = modulated_deform_conv(
        x, weight, added if bias else None, offsets * 0, mask * 0 + 1, stride, padding=1
    )
    expected = conv2d(x, weight, added if bias else None, stride=stride, padding=1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_kernels_need_not_be_square():
    x, _, bias, _, _ = inputs()
    weight = torch.randn(4, 3, 2, 3)
    found = modulated_deform_conv(x, weight, bias, torch.zeros(2, 12, 4, 4), torch.ones(2, 6, 4, 4))
    assert torch.allclose(found, conv2d(x, weight, bias), atol=1e-5)


def test_first_offset_moves_down_second_to_the_right():
    x = torch.arange(30.0).reshape(1, 1, 5, 6)
    offsets = torch.zeros(1, 2, 5, 6)
    offsets[:, 0], offsets[:, 1] = 1.0, 2.0
    found = modulated_deform_conv(x, torch.ones(1, 1, 1, 1), None, offsets, torch.ones(1, 1, 5, 6))
    expected = torch.zeros(1, 1, 5, 6)
    expected[:, :, :4, :4] = x[:, :, 1:, 2:]
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients(stride):
    arguments = [tensor.requires_grad_() for tensor in inputs(torch.float64, stride)]
    assert torch.autograd.gradcheck(
        lambda *a: modulated_deform_conv(*a, stride, 1), arguments, fast_mode=True
    )


def test_gradients_through_rereading():
    x, weight, bias, _, _ = inputs(torch.float64)
    offsets = (2 * torch.randn(2, 18, 6, 8, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(2, 9, 6, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda o, m: modulated_deform_conv(x, weight, bias, reread(o, 5, 6), reread(m, 5, 6), 1, 1),
        (offsets, mask),
        fast_mode=True,
    )


def test_reread_takes_the_first_numbers_of_each_sample():
    tensor = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    found = reread(tensor, 2, 3)
    assert found.shape == (2, 3, 2, 3)
    assert found.flatten(1).tolist() == [list(range(18)), list(range(60, 78))]
    assert reread(tensor, 4, 5) is tensor
    with pytest.raises(ValueError, match="4 x 5 holds too few numbers to be read as one of 5 x 5"):
        reread(tensor, 5, 5)


def test_the_graph_compiles_whole():
    arguments = inputs()
    compiled = torch.compile(modulated_deform_conv, backend="eager", fullgraph=True)
    found = compiled(*arguments, 1, 1)
    assert torch.allclose(found, modulated_deform_conv(*arguments, 1, 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(dtype):
    x, weight, bias, offsets, mask = inputs()
    low = [tensor.to(dtype) for tensor in (x, weight, bias)]
    expected = modulated_deform_conv(x, weight, bias, offsets, mask, 1, 1)
    for geometry in ((offsets, mask), (offsets.to(dtype), mask.to(dtype))):
        found = modulated_deform_conv(*low, *geometry, 1, 1)
        assert found.dtype == dtype
        assert torch.allclose(found.float(), expected, atol=0.15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_are_exact_in_half_precision(dtype):
    """Offsets of 16 bits are added to pixel positions that those cannot hold."""
    x = torch.arange(700.0).reshape(1, 1, 1, 700) / 700
    offsets, mask = torch.full((1, 2, 1, 700), 0.0), torch.ones(1, 1, 1, 700)
    weight = torch.ones(1, 1, 1, 1)
    found = modulated_deform_conv(x.to(dtype), weight.to(dtype), None, offsets.to(dtype), mask.to(dtype))
    assert torch.allclose(found.float(), x, atol=0.004)


def test_autocast():
    x, weight, bias, offsets, mask = inputs()
    expected = modulated_deform_conv(x, weight, bias, offsets, mask, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = modulated_deform_conv(x, weight, bias, offsets, mask.bfloat16(), 1, 1)
    assert torch.allclose(found.float(), expected, atol=0.15)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("x", (3, 5, 6), r"x must have shape \(B, C, H, W\), got \(3, 5, 6\)"),
        ("weight", (4, 2, 3, 3), r"weight must have shape \(O, C, Kh, Kw\) with C = 3 channels"),
        ("offsets", (2, 18, 5, 5), r"offsets must have shape \(B, 2K, Ho, Wo\) = \(2, 18, 5, 6\)"),
        ("mask", (2, 18, 5, 6), r"mask must have shape \(B, K, Ho, Wo\) = \(2, 9, 5, 6\)"),
    ],
)
def test_wrong_shapes_are_named(name, shape, said):
    arguments = dict(zip(("x", "weight", "bias", "offsets", "mask"), inputs(), strict=True))
    arguments[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=said):
        modulated_deform_conv(**arguments, stride=1, padding=1)
