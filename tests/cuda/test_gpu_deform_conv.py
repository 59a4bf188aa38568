"""Deformable convolution on a GPU: every dtype against the reference in float64, and determinism."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from groundingml.ops import modulated_deform_conv, reference

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
CASES = {
    "256 channels": (256, (13, 17), 1, 1),
    "stride 2": (256, (13, 17), 2, 1),
    "33 channels, dilated": (33, (13, 17), 1, 2),
    "1 channel": (1, (5, 6), 1, 1),
}


@pytest.fixture(params=[False, True], ids=["fast", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


def run(tensors: list[Tensor], grad_output: Tensor, stride: int, dilation: int) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = modulated_deform_conv(*leaves, stride, dilation, dilation)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(case: str, dtype: torch.dtype, deterministic: bool) -> None:
    channels, size, stride, dilation = CASES[case]
    out = [-(-n // stride) for n in size]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    torch.manual_seed(0)
    shapes = ((2, channels, *size), (8, channels, 3, 3), (8,), (2, 18, *out), (2, 9, *out))
    tensors = [torch.randn(shape, dtype=wide) for shape in shapes]
    tensors[1] /= (9 * channels) ** 0.5
    tensors[:3] = [tensor.to(dtype) for tensor in tensors[:3]]
    grad_output = torch.randn(2, 8, *out, dtype=wide).to(dtype)
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    expected = reference.modulated_deform_conv(*exact, stride, dilation, dilation)
    expected_all = [expected.detach(), *torch.autograd.grad(expected, exact, grad_output.double())]

    on_gpu = [tensor.cuda() for tensor in tensors]
    found = run(on_gpu, grad_output.cuda(), stride, dilation)
    for name, result, exactly in zip(
        ("output", "x", "weight", "bias", "offsets", "mask"), found, expected_all, strict=True
    ):
        error = (result.cpu().double() - exactly).norm() / exactly.norm()
        assert error < TOLERANCE[dtype], name
    if deterministic:
        for again, before in zip(run(on_gpu, grad_output.cuda(), stride, dilation), found, strict=True):
            assert torch.equal(again, before)
