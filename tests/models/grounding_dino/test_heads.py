from __future__ import annotations

import math
from dataclasses import replace

import torch

from groundingml.models.grounding_dino import GroundingDinoConfig
from groundingml.models.grounding_dino.heads import BoxHead, ClassHead, Mlp, PredictionHeads, pad_logits


def test_class_logits_are_scaled_dot_products_with_a_bias():
    head = ClassHead(replace(GroundingDinoConfig.mm_grounding_dino_tiny(), d_model=64, class_scale=0.25))
    assert math.isclose(head.bias.item(), -4.59512, rel_tol=1e-5)
    x, text = torch.randn(2, 5, 64), torch.randn(2, 3, 64)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    logits = head(x, text, mask)
    expected = 0.25 * torch.einsum("bqc,btc->bqt", x, text) + head.bias
    torch.testing.assert_close(logits[0], expected[0])
    torch.testing.assert_close(logits[1, :, [0, 2]], expected[1, :, [0, 2]])
    assert torch.isneginf(logits[1, :, 1]).all()


def test_a_plain_class_head_has_no_parameters():
    assert list(ClassHead(GroundingDinoConfig.grounding_dino_tiny()).parameters()) == []


def test_a_box_head_begins_as_no_change():
    torch.manual_seed(0)
    config = GroundingDinoConfig()
    heads = PredictionHeads(config)
    reference = torch.rand(1, 6, 4) * 0.9 + 0.05
    boxes = heads.boxes(0, torch.randn(1, 6, config.d_model), reference)
    torch.testing.assert_close(boxes, reference)
    assert BoxHead(8)(torch.randn(3, 8)).abs().max() == 0


def test_heads_are_shared_or_not():
    shared = PredictionHeads(GroundingDinoConfig.grounding_dino_tiny())
    assert shared.box_head(0) is shared.box_head(5)
    separate = PredictionHeads(GroundingDinoConfig.mm_grounding_dino_tiny())
    assert len({id(separate.box_head(i)) for i in range(6)}) == 6
    assert len({id(separate.class_head(i)) for i in range(6)}) == 6


def test_mlp_has_relu_between_its_layers_only():
    mlp = Mlp(4, 5, 3, layers=2)
    x = torch.randn(7, 4)
    expected = mlp.layers[1](mlp.layers[0](x).clamp(min=0))
    torch.testing.assert_close(mlp(x), expected)
    assert (expected < 0).any()


def test_logits_are_padded_with_minus_infinity():
    padded = pad_logits(torch.zeros(2, 3), 5)
    assert padded.tolist() == [[0.0, 0.0, 0.0, -math.inf, -math.inf]] * 2
