from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from groundingml.models.glip.dyhead import DeformConvNorm, DyConv, DyReLU


@pytest.fixture
def layer() -> DyConv:
    torch.manual_seed(0)
    return DyConv(16, groups=4).eval()


@torch.no_grad()
def test_levels_hear_from_their_neighbours_only(layer):
    maps = [torch.randn(1, 16, size, size) for size in (16, 8, 4, 2)]
    before = layer(maps)
    maps[3] = maps[3] + 1
    after = layer(maps)
    assert [x.shape for x in after] == [x.shape for x in maps]
    changed = [not torch.equal(x, y) for x, y in zip(before, after, strict=True)]
    assert changed == [False, False, True, True]


@torch.no_grad()
def test_still_and_fully_open_taps_are_an_ordinary_convolution():
    torch.manual_seed(0)
    layer = DeformConvNorm(8, groups=2, stride=2)
    x = torch.randn(2, 8, 9, 12)
    found = layer(x, torch.zeros(2, 18, 5, 6), torch.ones(2, 9, 5, 6))
    expected = layer.norm(F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1))
    assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_offsets_of_a_larger_map_are_read_from_the_beginning():
    layer = DeformConvNorm(8, groups=2, stride=1)
    x, offsets, mask = torch.randn(1, 8, 4, 5), torch.randn(1, 18, 8, 10), torch.rand(1, 9, 8, 10)
    found = layer(x, offsets, mask)
    offsets[0, 5:] = 7.0  # 18 * 4 * 5 numbers are read: those of 4.5 of the 8 x 10 maps
    mask[0, 3:] = 0.3
    assert torch.equal(layer(x, offsets, mask), found)
    offsets[0, 4, 0, 0] = 3.0
    assert not torch.equal(layer(x, offsets, mask), found)


@torch.no_grad()
def test_an_untouched_rectifier_is_nearly_relu():
    """All lines' sigmoids at one half give max(x, 0), as the paper begins."""
    rectifier = DyReLU(8)
    for parameter in rectifier.parameters():
        parameter.zero_()
    x = torch.randn(2, 8, 3, 3)
    assert torch.allclose(rectifier(x), x.relu())


def test_gradients_reach_every_parameter(layer):
    maps = [torch.randn(1, 16, size, size, requires_grad=True) for size in (8, 4, 2)]
    sum(x.square().sum() for x in layer(maps)).backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in maps)
    without = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
