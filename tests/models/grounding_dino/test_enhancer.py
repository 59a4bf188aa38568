from __future__ import annotations

import pytest
import torch
from torch import Tensor

from groundingml.models.grounding_dino import GroundingDinoConfig
from groundingml.models.grounding_dino.enhancer import FusionLayer, TextLayer, bounded


def fusion_as_published(
    layer: FusionLayer, image: Tensor, text: Tensor, image_mask: Tensor, text_mask: Tensor
):
    """The original's computation for one sample: project everything, shift, clamp, mask, softmax."""
    image, text = layer.image_norm(image), layer.text_norm(text)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    query, image_value = heads(layer.image_query(image)), heads(layer.image_value(image))
    key, text_value = heads(layer.text_key(text)), heads(layer.text_value(text))
    scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
    scores = (scores - scores.max()).clamp(min=-50000, max=50000)
    transposed = scores.transpose(-1, -2)
    transposed = (transposed - transposed.amax(-1, keepdim=True)).clamp(min=-50000, max=50000)
    to_image = transposed.masked_fill(~image_mask[:, None, None, :], float("-inf")).softmax(-1)
    to_text = scores.masked_fill(~text_mask[:, None, None, :], float("-inf")).softmax(-1)
    image_change = layer.image_output((to_text @ text_value).transpose(1, 2).flatten(2))
    text_change = layer.text_output((to_image @ image_value).transpose(1, 2).flatten(2))
    return image + layer.image_scale * image_change, text + layer.text_scale * text_change


@pytest.fixture
def layer() -> FusionLayer:
    torch.manual_seed(0)
    layer = FusionLayer(32, 32, width=24, heads=2).double().eval()
    for parameter in layer.parameters():
        parameter.data.normal_()
    return layer


@pytest.mark.parametrize("gain", [1.0, 30.0, 3000.0], ids="scores around {}".format)
@torch.no_grad()
def test_fusion_equals_the_published_computation(layer, gain):
    """Also where the bound of -50000 is reached (the last case), which changes the result."""
    layer.image_query.weight *= gain
    image, text = torch.randn(1, 50, 32, dtype=torch.float64), torch.randn(1, 7, 32, dtype=torch.float64)
    image_mask = torch.rand(1, 50) < 0.8
    text_mask = torch.tensor([[True] * 5 + [False] * 2])
    expected = fusion_as_published(layer, image, text, image_mask, text_mask)
    found = layer(image, text, image_mask, text_mask)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    spread = layer._scores(layer.image_norm(image), layer.text_norm(text))
    assert (spread.max() - spread.min() > 50000) == (gain == 3000.0)


def test_the_bound_is_each_samples_own():
    scores = torch.tensor([[[0.0, 60000.0]], [[-1.0, 3.0]]])
    assert bounded(scores).tolist() == [[[10000.0, 60000.0]], [[-1.0, 3.0]]]
    assert bounded(scores * 1e-3).tolist() == (scores * 1e-3).tolist()


def test_fusion_passes_gradients_to_all_its_parameters(layer):
    image, text = torch.randn(2, 9, 32).double(), torch.randn(2, 4, 32).double()
    outputs = layer(image, text, None, torch.ones(2, 4, dtype=torch.bool))
    sum(output.square().sum() for output in outputs).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_a_text_layer_keeps_phrases_apart():
    torch.manual_seed(0)
    layer = TextLayer(GroundingDinoConfig()).eval()
    text, positions = torch.randn(1, 4, 256), torch.randn(1, 4, 256)
    mask = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]], dtype=torch.bool)
    out = layer(text, positions, mask)
    text[:, 2:] += 1.0
    changed = layer(text, positions, mask)
    torch.testing.assert_close(changed[:, :2], out[:, :2])
    assert (changed[:, 2:] - out[:, 2:]).abs().max() > 1e-3
