from __future__ import annotations

import pytest
import torch
from torch import nn

from groundingml.models.grounding_dino.attention import DeformableAttention, FeedForward, MultiHeadAttention


def test_multi_head_attention_equals_pytorchs():
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        parts = (ours.query, ours.key, ours.value)
        for part in parts:
            nn.init.normal_(part.bias)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    query, key, value = torch.randn(2, 5, 12), torch.randn(2, 4, 12), torch.randn(2, 4, 12)
    allowed = torch.tensor([[True, True, True, True], [True, False, True, False]])
    expected, _ = theirs(query, key, value, key_padding_mask=~allowed)
    torch.testing.assert_close(ours(query, key, value, allowed[:, None, None, :]), expected)


def test_deformable_attention_ignores_padding():
    torch.manual_seed(0)
    layer = DeformableAttention(8, 2, levels=2, points=3)
    shapes, mask = [(4, 5), (2, 3)], torch.ones(1, 26, dtype=torch.bool)
    mask[:, 7:11] = False
    memory = torch.randn(1, 26, 8)
    arguments = (torch.randn(1, 6, 8), torch.rand(1, 6, 2, 4))
    out = layer(*arguments, memory, mask, shapes)
    assert out.shape == (1, 6, 8)
    changed = memory.clone()
    changed[:, 7:11] = 1e4
    torch.testing.assert_close(layer(*arguments, changed, mask, shapes), out)
    assert (layer(*arguments, changed, None, shapes) - out).abs().max() > 1.0


def test_deformable_attention_begins_by_looking_around():
    """Each head looks in its own direction, each point a step further (as in Deformable-DETR)."""
    layer = DeformableAttention(8, 4, levels=2, points=3)
    offsets = layer.sampling_offsets.bias.view(4, 2, 3, 2)
    torch.testing.assert_close(offsets[0, 1], torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
    torch.testing.assert_close(offsets[1, 0, 1], torch.tensor([0.0, 2.0]), atol=1e-6, rtol=0)
    assert layer.sampling_offsets.weight.abs().max() == 0
    assert layer.attention_weights.weight.abs().max() == 0


@pytest.mark.parametrize("rows", [1, 1024, 1025, 2500])
def test_feed_forward_in_chunks_is_the_same(rows):
    torch.manual_seed(0)
    ffn = FeedForward(16, 40)
    nn.init.normal_(ffn.fc1.bias)
    nn.init.normal_(ffn.fc2.bias)
    x = torch.randn(2, rows, 16)
    with_gradient = ffn(x)
    with torch.no_grad():
        torch.testing.assert_close(ffn(x), with_gradient.detach())
        torch.testing.assert_close(ffn(x.transpose(0, 1)), with_gradient.detach().transpose(0, 1))
    assert with_gradient.requires_grad
