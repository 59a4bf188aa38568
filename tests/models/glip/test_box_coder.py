from __future__ import annotations

import torch

from groundingml.models.glip.box_coder import clip, decode, encode

ANCHORS = torch.tensor([[-28.0, -28.0, 35.0, 35.0], [10.0, 20.0, 73.0, 83.0]])


def test_decode_is_the_inverse_of_encode():
    boxes = torch.tensor([[0.0, 5.0, 99.0, 30.0], [12.0, 13.0, 14.0, 15.0]])
    assert torch.allclose(decode(encode(boxes, ANCHORS), ANCHORS), boxes, atol=1e-4)


def test_no_deltas_give_the_anchor():
    assert torch.allclose(decode(torch.zeros(2, 4), ANCHORS), ANCHORS)


def test_the_last_pixel_belongs_to_the_box():
    """A move of 10 is the anchor's width, 64 with its last pixel; a growth of 5 * ln 2 doubles that."""
    deltas = torch.tensor([[10.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5 * 0.6931472, 0.0]])
    expected = torch.tensor([[36.0, -28.0, 99.0, 35.0], [-22.0, 20.0, 105.0, 83.0]])
    assert torch.allclose(decode(deltas, ANCHORS), expected, atol=1e-3)


def test_growth_is_bounded():
    box = decode(torch.tensor([[0.0, 0.0, 1e4, 0.0]]), ANCHORS[:1])[0]
    assert abs(float(box[2] - box[0] + 1) - 62.5 * 64) < 0.1


def test_clip_ends_at_the_last_pixel():
    boxes = torch.tensor([[-5.0, -1.0, 1000.0, 7.5]])
    assert torch.equal(clip(boxes, height=10, width=20), torch.tensor([[0.0, 0.0, 19.0, 7.5]]))
