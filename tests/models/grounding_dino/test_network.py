"""The network as a whole: inputs, batches, and the split into image, text and grounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from groundingml.models.grounding_dino import GroundingDino, Proposals


def assert_outputs_close(found, expected, columns: int, tolerance: float = 1e-4):
    assert torch.equal(found.topk_indices, expected.topk_indices)
    torch.testing.assert_close(
        found.logits[..., :columns], expected.logits[..., :columns], atol=tolerance, rtol=tolerance
    )
    torch.testing.assert_close(found.boxes_cxcywh, expected.boxes_cxcywh, atol=tolerance / 10, rtol=tolerance)


@pytest.fixture(scope="module")
def model(small_model) -> GroundingDino:
    return small_model("mm-grounding-dino")


@torch.no_grad()
def test_forward_is_encode_and_ground(model, batch_of):
    batch = batch_of([(96, 120), (70, 128)], [[2, 1], [1, 1, 1]])
    whole = model(batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask)
    image = model.encode_image(batch.pixel_values, batch.pixel_mask)
    text = model.encode_text(batch.input_ids, batch.attention_mask)
    parts = model.ground(image, text)
    assert torch.equal(whole.logits, parts.logits)
    assert torch.equal(whole.boxes_cxcywh, parts.boxes_cxcywh)
    assert whole.logits.shape == (2, 30, 256)
    assert whole.boxes_cxcywh.shape == (2, 30, 4)
    assert whole.topk_indices.shape == (2, 30)
    assert ((whole.boxes_cxcywh >= 0) & (whole.boxes_cxcywh <= 1)).all()


@torch.no_grad()
def test_a_prompt_gives_the_same_alone_and_beside_a_longer_one(model, batch_of):
    batch = batch_of([(96, 120)] * 3, [[2], [3, 1, 4, 1, 5], [1, 1]])
    together = model(batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask)
    for index in range(3):
        one = batch.sample(index)
        alone = model(one.pixel_values, one.pixel_mask, one.input_ids, one.attention_mask)
        row = replace(
            together,
            logits=together.logits[index : index + 1],
            boxes_cxcywh=together.boxes_cxcywh[index : index + 1],
            topk_indices=together.topk_indices[index : index + 1],
        )
        assert_outputs_close(row, alone, columns=one.input_ids.shape[1])


@torch.no_grad()
def test_a_padded_image_gives_the_same_alone_and_beside_others(model, batch_of):
    """With equal padding. How much padding there is does matter a little: Swin and GroupNorm see it."""
    batch = batch_of([(64, 128), (128, 90), (100, 100)], [[2, 1]] * 3)
    together = model(batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask)
    for index in range(3):
        row = slice(index, index + 1)
        alone = model(batch.pixel_values[row], batch.pixel_mask[row], batch.input_ids[row])
        same = replace(
            together,
            logits=together.logits[row],
            boxes_cxcywh=together.boxes_cxcywh[row],
            topk_indices=together.topk_indices[row],
        )
        assert_outputs_close(same, alone, columns=batch.input_ids.shape[1])


@torch.no_grad()
def test_the_mask_hides_padding(model, batch_of):
    """Padding is told from black: without the mask the answer is another."""
    batch = batch_of([(64, 128), (128, 90)], [[2, 1]] * 2)
    masked = model(batch.pixel_values, batch.pixel_mask, batch.input_ids)
    unmasked = model(batch.pixel_values, None, batch.input_ids)
    assert (masked.boxes_cxcywh - unmasked.boxes_cxcywh).abs().max() > 0.01


@torch.no_grad()
def test_a_mask_without_padding_is_no_mask(model, batch_of):
    batch = batch_of([(90, 77)], [[2]])
    image = model.encode_image(batch.pixel_values, batch.pixel_mask)
    assert image.mask is None
    without = model.encode_image(batch.pixel_values)
    assert torch.equal(image.positions, without.positions)
    assert torch.equal(image.centres, without.centres)


@torch.no_grad()
def test_one_image_with_many_prompts_and_one_prompt_with_many_images(model, batch_of):
    batch = batch_of([(64, 96), (80, 70)], [[1], [2, 2]])
    image = model.encode_image(batch.pixel_values, batch.pixel_mask)
    text = model.encode_text(batch.input_ids, batch.attention_mask)
    columns = batch.input_ids.shape[1]
    found = model.ground(image.select([1]), text)
    assert_outputs_close(found, model.ground(image.select([1, 1]), text), columns)
    found = model.ground(image, text.select([0]))
    assert_outputs_close(found, model.ground(image, text.select([0, 0])), columns)
    with pytest.raises(ValueError, match="2 images and 3 prompts"):
        model.ground(image, text.select([0, 1, 0]))


@torch.no_grad()
def test_features_can_be_selected_and_moved(model, batch_of):
    batch = batch_of([(64, 96), (80, 70)], [[1], [2, 2]])
    image = model.encode_image(batch.pixel_values, batch.pixel_mask)
    picked = image.select(torch.tensor([1, 0, 1]))
    assert picked.batch_size == 3
    for name in ("tokens", "positions", "mask", "valid_ratios", "centres"):
        assert torch.equal(getattr(picked, name), getattr(image, name)[[1, 0, 1]])
    assert picked.spatial_shapes == image.spatial_shapes
    text = model.encode_text(batch.input_ids, batch.attention_mask)
    for name in ("tokens", "mask", "block_mask", "positions", "hidden"):
        assert torch.equal(getattr(text.select([1]), name), getattr(text, name)[1:])
    assert image.to("meta").tokens.device.type == "meta"
    assert text.to("meta").hidden.device.type == "meta"


@torch.no_grad()
def test_an_image_of_few_tokens_has_fewer_queries(small_model, batch_of):
    model = small_model(group_norm_groups=8)
    batch = batch_of([(20, 24)], [[1]])
    out = model(batch.pixel_values, batch.pixel_mask, batch.input_ids)
    tokens = 3 * 3 + 2 * 2 + 1 + 1
    assert sorted(out.topk_indices[0].tolist()) == list(range(tokens))
    assert out.logits.shape == (1, tokens, 256)


@torch.no_grad()
def test_injected_queries_are_used(model, batch_of):
    batch = batch_of([(96, 120)], [[2, 1]])
    indices = torch.arange(40, 60)[None]
    out = model(batch.pixel_values, None, batch.input_ids, topk_indices=indices)
    assert torch.equal(out.topk_indices, indices)
    assert out.boxes_cxcywh.shape == (1, 20, 4)


@torch.no_grad()
def test_half_precision_is_close(small_model, batch_of):
    batch = batch_of([(96, 120), (90, 100)], [[2, 1], [1]])
    model = small_model("mm-grounding-dino")
    full = model(batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask)
    inputs = (batch.pixel_mask, batch.input_ids, batch.attention_mask, None, full.topk_indices)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(batch.pixel_values, *inputs)
    model.bfloat16()
    half = model(batch.pixel_values.bfloat16(), *inputs)
    columns = batch.input_ids.shape[1]
    real = batch.attention_mask.bool()[:, None, :].expand(-1, 30, -1)
    for found in (mixed, half):
        assert (found.boxes_cxcywh.float() - full.boxes_cxcywh).abs().mean() < 0.02
        assert (found.logits.float() - full.logits)[..., :columns][real].abs().mean() < 0.1


@pytest.mark.parametrize(
    ("pixels", "mask", "message"),
    [
        (torch.zeros(3, 8, 8), None, r"\(batch, 3, height, width\), got shape \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), None, r"got shape \(1, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 9), r"pixel_mask must be \(1, 8, 8\).*got \(1, 8, 9\)"),
    ],
)
def test_wrong_images_are_refused(model, pixels, mask, message):
    with pytest.raises(ValueError, match=message):
        model.encode_image(pixels, mask)


class ConstantProposals(nn.Module):
    """Proposes the same everywhere but prefers the last tokens, and adds to the class logits."""

    def forward(self, memory, memory_mask, image, text, text_features):
        batch, tokens, _ = memory.shape
        residual = torch.arange(tokens).float()[None, :, None].expand(batch, tokens, text.shape[1])
        return Proposals(
            logits=torch.zeros_like(residual),
            boxes_logit=torch.zeros(batch, tokens, 4),
            features=memory,
            residual_logits=residual,
            selection_scores=residual[..., 0],
        )


@torch.no_grad()
def test_proposals_may_rank_and_add_to_the_logits(small_model, batch_of):
    model = small_model("mm-grounding-dino", query_content="proposals")
    assert model.query_embedding is None
    model.proposals = ConstantProposals()
    batch = batch_of([(96, 120)], [[2, 1]])
    out = model(batch.pixel_values, None, batch.input_ids)
    tokens = model.encode_image(batch.pixel_values).tokens.shape[1]
    assert out.topk_indices[0].tolist() == list(range(tokens - 1, tokens - 31, -1))
    columns = batch.input_ids.shape[1]
    plain = out.logits[..., :columns] - out.topk_indices[..., None].float()
    assert plain.abs().max() < 20
    training = model.ground_training(
        model.encode_image(batch.pixel_values), model.encode_text(batch.input_ids)
    )
    torch.testing.assert_close(training.decoder_logits[-1], out.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@torch.no_grad()
def test_a_gpu_gives_the_same(small_model, batch_of):
    batch = batch_of([(96, 120), (90, 100)], [[2, 1], [1]])
    model = small_model("mm-grounding-dino")
    inputs = (batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask)
    expected = model(*inputs)
    model.cuda()
    moved = [tensor.cuda() for tensor in inputs]
    found = model(*moved, topk_indices=expected.topk_indices.cuda())
    assert found.boxes_cxcywh.is_cuda
    torch.testing.assert_close(found.boxes_cxcywh.cpu(), expected.boxes_cxcywh, atol=1e-4, rtol=0)
    columns = batch.input_ids.shape[1]
    torch.testing.assert_close(
        found.logits[..., :columns].cpu(), expected.logits[..., :columns], atol=2e-3, rtol=0
    )
