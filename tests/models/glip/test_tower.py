from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from groundingml.models.glip.tower import GlipFusion, GlipTextLayer, TowerLayer, flatten_maps, unflatten_maps


@pytest.fixture
def fusion() -> GlipFusion:
    torch.manual_seed(0)
    layer = GlipFusion(16, 24, width=32, heads=4).double().eval()
    for parameter in layer.parameters():
        parameter.data.normal_()
    return layer


def fusion_as_published(
    layer: GlipFusion, image: Tensor, text: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The original's computation: project everything, clamp, subtract the rows' maximum, clamp, softmax."""
    image, text = layer.image_norm(image), layer.text_norm(text)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    query, key = heads(layer.image_query(image)), heads(layer.text_key(text))
    scores = (query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5).clamp(min=-50000).clamp(max=50000)
    transposed = scores.transpose(-1, -2)
    transposed = (transposed - transposed.amax(-1, keepdim=True)).clamp(min=-50000)
    to_image = transposed.softmax(-1)
    to_text = (scores + torch.where(mask, 1.0, -9e15)[:, None, None, :]).softmax(-1)
    image_change = (to_text @ heads(layer.text_value(text))).transpose(1, 2).flatten(2)
    text_change = (to_image @ heads(layer.image_value(image))).transpose(1, 2).flatten(2)
    image = image + layer.image_scale * layer.image_output(image_change)
    return image, text + layer.text_scale * layer.text_output(text_change)


@pytest.mark.parametrize("gain", [1.0, 3e5], ids="scores around {}".format)
@torch.no_grad()
def test_fusion_equals_the_published_computation(fusion, gain):
    """Also where scores exceed 50000 (the last case), which makes some of them equal."""
    fusion.image_query.weight *= gain
    image, text = torch.randn(2, 50, 16, dtype=torch.float64), torch.randn(2, 7, 24, dtype=torch.float64)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    found, expected = fusion(image, text, None, mask), fusion_as_published(fusion, image, text, mask)
    assert torch.allclose(found[0], expected[0])
    assert torch.allclose(found[1][mask], expected[1][mask])
    reached = fusion._scores(fusion.image_norm(image), fusion.text_norm(text)).abs().max() > 50000
    assert bool(reached) == (gain > 1)


@torch.no_grad()
def test_text_layer_is_a_layer_of_bert(fused_config):
    torch.manual_seed(0)
    config = BertConfig(**fused_config.text_config)
    config._attn_implementation = "sdpa"
    theirs, ours = BertLayer(config).eval(), GlipTextLayer(fused_config).eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3)
    names = {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "output",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
        "output.LayerNorm": "ffn_norm",
    }
    state = theirs.state_dict()
    ours.load_state_dict(
        {f"{new}.{leaf}": state[f"{old}.{leaf}"] for old, new in names.items() for leaf in ("weight", "bias")}
    )
    text = torch.randn(2, 6, 64)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    expected = theirs(text, attention_mask=mask[:, None, None, :].expand(2, 1, 6, 6))
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert torch.allclose(ours(text, mask), expected, atol=1e-5)


def test_text_layer_is_bounded(fused_config):
    layer = GlipTextLayer(fused_config).eval()
    with torch.no_grad():
        layer.fc1.weight.mul_(1e7)
        assert layer(torch.randn(1, 4, 64), torch.ones(1, 4, dtype=torch.bool)).isfinite().all()
        layer.fc1.bias.fill_(1e30)
        assert layer(torch.randn(1, 4, 64), torch.ones(1, 4, dtype=torch.bool)).abs().max() <= 50000


def test_maps_survive_flattening():
    maps = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 3)]
    tokens = flatten_maps(maps)
    assert tokens.shape == (2, 26, 3)
    assert torch.equal(tokens[1, 5 + 2], maps[0][1, :, 1, 2])
    for before, after in zip(maps, unflatten_maps(tokens, maps), strict=True):
        assert torch.equal(before, after)


@torch.no_grad()
def test_image_and_text_change_each_other(fused_config):
    torch.manual_seed(0)
    layer = TowerLayer(fused_config).eval()
    maps = tuple(torch.randn(1, 32, size, size) for size in (8, 4, 2, 1, 1))
    text, mask = torch.randn(1, 4, 64), torch.ones(1, 4, dtype=torch.bool)
    image_of, text_of = layer(maps, text, mask)
    other_image, _ = layer(maps, text + torch.randn_like(text), mask)
    _, other_text = layer(tuple(x + torch.randn_like(x) for x in maps), text, mask)
    assert not torch.allclose(image_of[0], other_image[0])
    assert not torch.allclose(text_of, other_text)
