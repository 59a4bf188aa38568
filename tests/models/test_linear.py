"""Linear layers through oneDNN equal PyTorch's, and step aside where they must."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from groundingml.models import linear as module
from groundingml.models.linear import Linear, batched_linear, feed_forward, linear

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


def calls_of_onednn(function) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return sum(event.count for event in profile.key_averages() if event.key == "mkldnn::_linear_pointwise")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7), (0, 7)], ids=str)
@torch.inference_mode()
def test_equals_the_ordinary_op(activation, shape):
    x, layer = torch.randn(shape), Linear(7, 11)
    expected = ACTIVATIONS[activation](F.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer(x, activation), expected, atol=1e-6, rtol=1e-6)


@torch.inference_mode()
def test_any_strides_and_no_bias():
    x, weight = torch.randn(6, 5, 4).permute(2, 0, 1)[:, ::2], torch.randn(5, 9).T
    torch.testing.assert_close(linear(x, weight), x @ weight.T, atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(not module._ONEDNN, reason="this PyTorch has no oneDNN")
def test_onednn_is_used_for_results_only():
    layer, x = Linear(8, 8), torch.randn(4, 8)
    with torch.no_grad():
        assert calls_of_onednn(lambda: layer(x)) == 1
        assert calls_of_onednn(lambda: layer.double()(x.double())) == 0
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    assert calls_of_onednn(lambda: layer(x)) == 0
    layer(x, "gelu").sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("batch", [1, 3])
def test_batched_linear_has_a_matrix_for_each_sample(batch):
    x, weight, bias = torch.randn(batch, 6, 5), torch.randn(batch, 4, 5), torch.randn(batch, 4)
    expected = torch.stack([F.linear(*sample) for sample in zip(x, weight, bias, strict=True)])
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            torch.testing.assert_close(batched_linear(x, weight, bias), expected)
            torch.testing.assert_close(batched_linear(x, weight), expected - bias[:, None])


def test_feed_forward_in_parts_is_the_same(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    expand, reduce, x = Linear(3, 8), Linear(8, 5), torch.randn(2, 7, 3)
    whole = feed_forward(x, expand, reduce, "relu")  # gradients are wanted: in one piece
    with torch.no_grad():
        parts = feed_forward(x, expand, reduce, "relu")
    assert parts.shape == (2, 7, 5)
    torch.testing.assert_close(parts, whole)
