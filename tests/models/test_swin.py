"""Our Swin against transformers' SwinBackbone with equal weights, and its window arithmetic."""

from __future__ import annotations

import pytest
import torch

from groundingml.models.checkpoints.huggingface import from_huggingface_names
from groundingml.models.grounding_dino import GroundingDinoConfig
from groundingml.models.swin import (
    SwinBackbone,
    SwinConfig,
    join_windows,
    relative_position_index,
    shifted_window_mask,
    split_windows,
)


@pytest.mark.parametrize("size", [(64, 96), (61, 130), (33, 31), (5, 7)], ids=str)
@pytest.mark.parametrize("window", [4, 7])
@torch.no_grad()
def test_maps_equal_transformers(size, window):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = SwinConfig(12, (2, 1, 3, 2), (1, 2, 3, 4), window, out_stages=(1, 3, 4))
    theirs = transformers.SwinBackbone(
        transformers.SwinConfig(
            embed_dim=12,
            depths=[2, 1, 3, 2],
            num_heads=[1, 2, 3, 4],
            window_size=window,
            out_indices=[1, 3, 4],
        )
    ).eval()
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    prefix = "model.backbone.conv_encoder.model."
    weights = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    ours = SwinBackbone(config).eval()
    converted = from_huggingface_names(weights, GroundingDinoConfig())
    ours.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in converted.items()})

    pixels = torch.randn(2, 3, *size)
    expected, found = theirs(pixels).feature_maps, ours(pixels)
    assert ours.channels == tuple(x.shape[1] for x in found)
    assert [x.shape for x in found] == [x.shape for x in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


def test_windows_are_rectangles_of_the_map():
    x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    windows = split_windows(x, 2)
    assert windows.shape == (2 * 2 * 3, 4, 1)
    assert windows[1].flatten().tolist() == [2, 3, 8, 9]
    assert torch.equal(join_windows(windows, 2, 4, 6), x)


def test_relative_position_index_is_the_same_for_equal_distances():
    index = relative_position_index(3, torch.device("cpu"))
    assert index.shape == (9, 9)
    assert index[0, 4] == index[4, 8]  # one down, one right
    assert index[0, 1] != index[1, 0]
    assert index.min() == 0
    assert index.max() == 24


def test_shifted_windows_hide_tokens_from_the_other_edge():
    mask = shifted_window_mask(4, 4, 4, torch.zeros(()))
    assert mask.shape == (1, 16, 16)
    regions = torch.tensor([[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2).flatten()
    expected = torch.where(regions[:, None] == regions[None, :], 0.0, -100.0)
    assert torch.equal(mask[0], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": (3, 6, 12)}, "one of each per stage"),
        ({"num_heads": (5, 6, 12, 24)}, "5 heads do not divide"),
        ({"out_stages": (2, 5)}, "out_stages must lie in 1..4"),
        ({"out_stages": ()}, "out_stages must lie in 1..4"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SwinConfig(**changes)
