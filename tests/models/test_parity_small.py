"""Our network against transformers' with equal random weights, in small configs of every family."""

from __future__ import annotations

import pytest
import torch

FAMILIES = [
    ("grounding-dino", 4),
    ("mm-grounding-dino", 4),
    ("mm-grounding-dino", 5),
    ("llmdet", 4),
    ("llmdet", 5),
]

BATCHES = {
    "one image, one short phrase": ([(128, 128)], [[1]]),
    "odd sizes": ([(117, 203)], [[2, 1, 3]]),
    "padding and different prompts": ([(96, 160), (131, 77), (64, 99)], [[1, 2], [3], [1, 1, 4, 2]]),
    "a prompt of 256 tokens": ([(101, 90), (72, 130)], [[1] * 127, [2] * 3]),
}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda param: f"{param[0]}, {param[1]} levels")
def pair(request, reference_pair, config_of):
    # LLMDet is MM-Grounding-DINO with other weights.
    return reference_pair(config_of(*request.param), seed=1 if request.param[0] == "llmdet" else 0)


@torch.no_grad()
def run_both(pair, batch, inject: bool):
    theirs = pair.theirs(
        pixel_values=batch.pixel_values,
        pixel_mask=batch.pixel_mask.long(),
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
    )
    scores = theirs.enc_outputs_class.amax(-1)
    their_topk = scores.topk(pair.ours.config.num_queries, dim=1).indices
    ours = pair.ours(
        batch.pixel_values,
        batch.pixel_mask,
        batch.input_ids,
        batch.attention_mask,
        topk_indices=their_topk if inject else None,
    )
    return theirs, ours, scores, their_topk


def assert_same_selection(scores, expected, found):
    """The same set of tokens, but for tokens whose scores tie with the last one chosen."""
    for row, want, have in zip(scores, expected.tolist(), found.tolist(), strict=True):
        assert len(set(have)) == len(have)
        worst = row[want].min()
        for token in set(want) ^ set(have):
            assert abs(float(row[token] - worst)) < 1e-4, f"token {token} was selected by one model only"


@pytest.mark.parametrize("name", BATCHES)
def test_outputs_equal_transformers(pair, batch_of, name):
    batch = batch_of(*BATCHES[name])
    theirs, ours, _, _ = run_both(pair, batch, inject=True)
    text = batch.attention_mask.bool()[:, None, :].expand(-1, ours.logits.shape[1], -1)
    columns = batch.input_ids.shape[1]
    assert ours.logits.shape == theirs.logits.shape
    assert torch.isinf(ours.logits[..., columns:]).all()
    assert torch.equal(torch.isinf(ours.logits), torch.isinf(theirs.logits))
    difference = (ours.logits[..., :columns] - theirs.logits[..., :columns])[text].abs().max().item()
    boxes = (ours.boxes_cxcywh - theirs.pred_boxes).abs().max().item()
    print(
        f"logits {difference:.1e} of {theirs.logits[..., :columns][text].abs().max():.1f}, boxes {boxes:.1e}"
    )
    assert difference <= 1e-4
    assert boxes <= 1e-5


@pytest.mark.parametrize("name", BATCHES)
def test_the_same_queries_are_selected(pair, batch_of, name):
    _, ours, scores, expected = run_both(pair, batch_of(*BATCHES[name]), inject=False)
    assert_same_selection(scores, expected, ours.topk_indices)


def test_the_comparison_is_about_something(pair, batch_of):
    """Random weights give varied boxes and logits: the tests above do not compare constants."""
    theirs, _, _, _ = run_both(pair, batch_of(*BATCHES["odd sizes"]), inject=True)
    assert theirs.logits[..., 1:5].std(dim=1).min() > 0.05
    assert theirs.pred_boxes.std(dim=1).min() > 0.02
