"""What the losses are computed from, and where gradients flow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from groundingml.models.grounding_dino import DenoisingQueries, GroundingDino, TrainingOutput
from groundingml.models.grounding_dino.proposals import gather_tokens


@pytest.fixture
def model(small_model) -> GroundingDino:
    return small_model("mm-grounding-dino", fusion_drop_path=0.0)


@pytest.fixture(scope="module")
def batch(batch_of):
    return batch_of([(96, 120), (80, 128)], [[2, 1], [1, 3, 1]])


def run(model: GroundingDino, batch, denoising: DenoisingQueries | None = None) -> TrainingOutput:
    return model.forward_training(
        batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask, denoising
    )


def finite_sum(*tensors: Tensor) -> Tensor:
    total = torch.zeros(())
    for tensor in tensors:
        total = total + torch.where(torch.isfinite(tensor), tensor, 0.0).square().sum()
    return total


def noised(model: GroundingDino, count: int, seed: int = 3) -> DenoisingQueries:
    """Denoising queries that the others may not see."""
    generator = torch.Generator().manual_seed(seed)
    queries = model.config.num_queries
    hidden = torch.zeros(count + queries, count + queries, dtype=torch.bool)
    hidden[count:, :count] = True
    return DenoisingQueries(
        torch.randn(2, count, model.config.d_model, generator=generator),
        torch.randn(2, count, 4, generator=generator),
        hidden,
    )


def test_the_last_layer_is_the_answer_of_inference(model, batch):
    out = run(model, batch)
    answer = model(batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask)
    assert out.decoder_logits.shape == (3, 2, 30, 256)
    assert out.decoder_boxes_cxcywh.shape == (3, 2, 30, 4)
    assert torch.equal(out.topk_indices, answer.topk_indices)
    torch.testing.assert_close(out.decoder_logits[-1], answer.logits)
    torch.testing.assert_close(out.decoder_boxes_cxcywh[-1], answer.boxes_cxcywh)


def test_encoder_outputs_are_those_of_the_selected_tokens(model, batch):
    out = run(model, batch)
    image = model.encode_image(batch.pixel_values, batch.pixel_mask)
    text = model.encode_text(batch.input_ids, batch.attention_mask)
    memory, tokens = model.enhancer(image, text)
    proposals = model.proposals(memory, image.mask, image, tokens, text)
    columns = batch.input_ids.shape[1]
    for row in range(2):
        picked = out.topk_indices[row]
        torch.testing.assert_close(out.encoder_logits[row, :, :columns], proposals.logits[row, picked])
    corrected = proposals.boxes_logit + proposals.box_head(proposals.features)
    expected = gather_tokens(corrected, out.topk_indices).sigmoid()
    torch.testing.assert_close(out.encoder_boxes_cxcywh, expected)
    assert torch.isneginf(out.encoder_logits[..., columns:]).all()


def test_denoising_queries_come_first_and_do_not_touch_the_others(model, batch):
    plain = run(model, batch)
    denoising = noised(model, 7)
    out = run(model, batch, denoising)
    assert out.decoder_logits.shape == (3, 2, 37, 256)
    torch.testing.assert_close(out.decoder_logits[:, :, 7:], plain.decoder_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        out.decoder_boxes_cxcywh[:, :, 7:], plain.decoder_boxes_cxcywh, atol=1e-5, rtol=1e-4
    )
    # The denoising queries themselves depend on what they are made of.
    other = run(model, batch, noised(model, 7, seed=4))
    assert (other.decoder_boxes_cxcywh[:, :, :7] - out.decoder_boxes_cxcywh[:, :, :7]).abs().mean() > 0.01
    # Without the mask they do touch the others.
    open_mask = DenoisingQueries(
        denoising.content, denoising.reference_logits, torch.zeros_like(denoising.self_attention_mask)
    )
    leaked = run(model, batch, open_mask)
    assert (leaked.decoder_logits[:, :, 7:, :5] - plain.decoder_logits[..., :5]).abs().max() > 0.01


def test_every_parameter_learns(model, batch):
    model.train()
    out = run(model, batch, noised(model, 4))
    finite_sum(
        out.decoder_logits, out.decoder_boxes_cxcywh, out.encoder_logits, out.encoder_boxes_cxcywh
    ).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert torch.isfinite(parameter.grad).all(), name
        # A softmax does not see the same constant in all its scores, so keys' biases learn nothing.
        is_key_bias = name.endswith(("key.bias", "qkv.bias"))
        assert is_key_bias or parameter.grad.abs().max() > 0, f"the gradient of {name} is zero"


def test_boxes_look_forward_twice(model, batch):
    """A layer's boxes teach the box head of its own layer and of the one before, and no earlier one."""
    for layer in range(3):
        model.zero_grad()
        run(model, batch).decoder_boxes_cxcywh[layer].square().sum().backward()
        learns = [
            head.layers[0].weight.grad is not None and head.layers[0].weight.grad.abs().max() > 0
            for head in model.heads.box_heads
        ]
        assert learns == [layer in (0, 1), layer in (1, 2), layer == 2]


def test_references_do_not_teach_the_proposals(model, batch):
    """The decoder starts from detached proposals; only the encoder outputs train the proposals' box head."""
    out = run(model, batch)
    finite_sum(out.decoder_logits, out.decoder_boxes_cxcywh).backward(retain_graph=True)
    assert model.proposals.box_head.layers[0].weight.grad is None
    out.encoder_boxes_cxcywh.sum().backward()
    assert model.proposals.box_head.layers[0].weight.grad.abs().max() > 0


def test_recomputation_gives_the_same_gradients(model, batch):
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)  # the same stochastic depth
        model.train()
        model.zero_grad()
        model.set_gradient_checkpointing(enabled)
        out = run(model, batch)
        finite_sum(out.decoder_logits, out.decoder_boxes_cxcywh).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        scale = gradients[0][name].abs().max()
        assert (gradients[1][name] - gradients[0][name]).abs().max() <= 1e-4 * scale, name


def test_a_few_steps_fit_a_box(config_of, batch_of):
    """A model as initialised learns: the boxes of all layers move towards the target."""
    torch.manual_seed(0)
    model = GroundingDino(replace(config_of("grounding-dino"), group_norm_groups=8)).eval()
    batch = batch_of([(64, 64)], [[1]])
    target = torch.tensor([0.3, 0.6, 0.2, 0.3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        out = run(model, batch)
        loss = (out.decoder_boxes_cxcywh - target).abs().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses
