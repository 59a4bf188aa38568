"""A model in the original repository's layout gives equal outputs, its config told from the shapes."""

from __future__ import annotations

import pytest
import torch

from groundingml.models import CheckpointError, load_model


@pytest.fixture
def model(small_model, published_sizes):
    return small_model("grounding-dino", **published_sizes)


@pytest.fixture
def weights(model, original_layout):
    return original_layout(model)


def outputs(model, batch):
    with torch.no_grad():
        return model(batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask)


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("nested", [True, False])
def test_outputs_are_equal(tmp_path, model, weights, batch_of, prefix, nested):
    content = {prefix + name: tensor for name, tensor in weights.items()}
    torch.save({"model": content} if nested else content, tmp_path / "checkpoint.pth")
    loaded = load_model(tmp_path / "checkpoint.pth")
    assert loaded.config == model.config
    batch = batch_of([(96, 117), (64, 70)], [[1, 2], [3]])
    expected, found = outputs(model, batch), outputs(loaded, batch)
    assert torch.equal(found.topk_indices, expected.topk_indices)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.boxes_cxcywh, expected.boxes_cxcywh)


def test_each_decoder_norm_matters(tmp_path, model, weights, batch_of):
    """The test above would notice norms that are mixed up: exchanging any two of them changes the outputs."""
    batch = batch_of([(96, 117)], [[1, 2]])
    expected = outputs(model, batch).logits
    for one, other in (("norm1", "norm2"), ("norm2", "catext_norm"), ("norm1", "norm3")):
        first, second = (f"transformer.decoder.layers.0.{norm}.weight" for norm in (one, other))
        mixed = weights | {first: weights[second], second: weights[first]}
        torch.save(mixed, tmp_path / "mixed.pth")
        assert not torch.allclose(outputs(load_model(tmp_path / "mixed.pth"), batch).logits, expected)


def test_separate_box_heads_of_a_fork_are_kept(tmp_path, model, weights):
    weights["bbox_embed.1.layers.2.bias"] = torch.full((4,), 7.0)
    torch.save({"model": weights}, tmp_path / "separate.pth")
    loaded = load_model(tmp_path / "separate.pth")
    assert not loaded.config.share_box_head
    assert torch.equal(loaded.state_dict()["heads.box_heads.1.layers.2.bias"], torch.full((4,), 7.0))


def test_a_missing_parameter_is_named(tmp_path, weights):
    del weights["transformer.enc_output.weight"]
    torch.save({"model": weights}, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: model\.enc_output\.weight \(32, 32\)"):
        load_model(tmp_path / "cut.pth")
