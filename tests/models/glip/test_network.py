from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from groundingml.models.glip import Glip, GlipConfig


@pytest.fixture
def model(fused_config) -> Glip:
    torch.manual_seed(0)
    return Glip(fused_config).eval()


IDS = torch.tensor([[101, 500, 501, 102], [101, 600, 102, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(model):
    images = torch.randn(2, 3, 64, 96)
    both = model(images, None, IDS, MASK)
    for row, tokens in ((0, 4), (1, 3)):
        alone = model(images[row : row + 1], None, IDS[row : row + 1, :tokens])
        assert torch.allclose(both.logits[row, :, :tokens], alone.logits[0], atol=1e-5)
        assert torch.allclose(both.box_deltas[row], alone.box_deltas[0], atol=1e-5)
        assert torch.allclose(both.centerness_logits[row], alone.centerness_logits[0], atol=1e-5)
    assert both.logits[1, :, 3].isneginf().all()


@torch.no_grad()
def test_one_image_or_one_caption_serves_all_rows(model):
    images = torch.randn(2, 3, 64, 64)
    image, text = model.encode_image(images), model.encode_text(IDS, MASK)
    one_text = model.ground(image, model.encode_text(IDS[:1]))
    one_image = model.ground(model.encode_image(images[:1]), text)
    expected = model(images[:1], None, IDS[:1])
    assert torch.allclose(one_text.logits[0], expected.logits[0], atol=1e-5)
    assert torch.allclose(one_image.logits[0], expected.logits[0], atol=1e-5)
    assert len(one_image.image_sizes) == one_image.logits.shape[0] == 2
    with pytest.raises(ValueError, match="2 images and 3 captions"):
        model.ground(image, model.encode_text(IDS[[0, 0, 1]]))


@torch.no_grad()
def test_sizes_come_from_the_mask_and_levels_from_the_padded_image(model):
    mask = torch.zeros(1, 70, 100, dtype=torch.bool)
    mask[:, :50, :80] = True
    output = model(torch.randn(1, 3, 70, 100), mask, IDS[:1])
    assert output.image_sizes == ((50, 80),)
    assert output.level_cells == (12 * 16, 6 * 8, 3 * 4, 2 * 2, 1)
    assert output.anchors_xyxy.shape == (sum(output.level_cells), 4)
    assert model.encode_image(torch.randn(1, 3, 70, 100)).image_sizes == ((70, 100),)


@pytest.mark.parametrize(
    ("pixels", "mask", "ids", "said"),
    [
        (torch.zeros(3, 8, 8), None, IDS, r"pixel_values must be \(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 9), IDS, r"pixel_mask must be \(1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), None, IDS[0], r"input_ids must be \(batch, tokens\)"),
        (torch.zeros(1, 3, 8, 8), None, torch.ones(1, 257, dtype=torch.long), "257 tokens.*at most 256"),
    ],
)
def test_wrong_shapes_are_refused(model, pixels, mask, ids, said):
    with pytest.raises(ValueError, match=said):
        model(pixels, mask, ids)


def test_gradients_reach_every_parameter(fused_config):
    torch.manual_seed(0)
    model = Glip(fused_config).train()
    output = model(torch.randn(1, 3, 64, 64), None, IDS[:1])
    (
        output.logits.square().mean() + output.box_deltas.square().mean() + output.centerness_logits.sum()
    ).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == set()


def test_config_is_read_back(fused_config):
    for config in (GlipConfig.tiny_a(), GlipConfig.tiny(), GlipConfig.large(), fused_config):
        assert GlipConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strides": (8, 16, 32)}, "3 strides"),
        ({"d_model": 100}, "d_model=100 is not a multiple of group_norm_groups=16"),
        ({"fusion_heads": 7}, "fusion_dim=2048"),
        ({"text_config": {}}, "hidden_size"),
    ],
)
def test_config_refuses_what_does_not_fit(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(GlipConfig.tiny(), **changes)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"family": "nano"}, "'nano'"), ({"queries": 3}, "not fields of a GlipConfig: queries")],
)
def test_config_refuses_other_models(values, said):
    with pytest.raises(ValueError, match=said):
        GlipConfig.from_dict(values)
