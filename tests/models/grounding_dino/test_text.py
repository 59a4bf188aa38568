from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from groundingml.models.grounding_dino.text import TextEncoder, phrase_blocks

DELIMITERS = (101, 102, 1012, 1029)


def blocks_by_loop(row: list[int]) -> tuple[torch.Tensor, list[int]]:
    """The original's loop over delimiters, written out."""
    mask, positions, previous = torch.eye(len(row), dtype=torch.bool), [0] * len(row), 0
    for column, token in enumerate(row):
        if token not in DELIMITERS:
            continue
        if column not in (0, len(row) - 1):
            mask[previous + 1 : column + 1, previous + 1 : column + 1] = True
            positions[previous + 1 : column + 1] = range(column - previous)
        previous = column
    return mask, positions


@pytest.mark.parametrize(
    "row",
    [
        [101, 7, 8, 1012, 9, 1012, 102],
        [101, 7, 8, 1012, 9, 1012, 102, 0, 0],
        [101, 7, 1029, 9, 8, 7, 1012, 102],
        [101, 7, 8, 102],
        [101, 7, 8, 102, 0],
        [101, 1012, 1012, 102],
        [101, 102],
        [101],
    ],
    ids=str,
)
def test_blocks_equal_the_loop_of_the_original(row):
    mask, positions = phrase_blocks(torch.tensor([row]), DELIMITERS)
    expected_mask, expected_positions = blocks_by_loop(row)
    assert torch.equal(mask[0], expected_mask)
    assert positions[0].tolist() == expected_positions


@pytest.fixture(scope="module")
def encoder(small_model) -> TextEncoder:
    return small_model().text_encoder


@torch.no_grad()
def test_a_phrase_does_not_see_the_others(encoder):
    one = encoder(torch.tensor([[101, 300, 301, 1012, 500, 1012, 102]]))
    other = encoder(torch.tensor([[101, 300, 301, 1012, 777, 1012, 102]]))
    alone = encoder(torch.tensor([[101, 300, 301, 1012, 102]]))
    torch.testing.assert_close(one.tokens[:, 1:4], other.tokens[:, 1:4])
    torch.testing.assert_close(one.tokens[:, 1:4], alone.tokens[:, 1:4], atol=1e-5, rtol=1e-5)
    assert (one.tokens[:, 4] - other.tokens[:, 4]).abs().max() > 0.1


@torch.no_grad()
def test_a_prompt_that_ends_with_a_dot_is_the_same_alone_and_padded(encoder):
    ids = torch.tensor([[101, 300, 301, 1012, 500, 1012, 102]])
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    alone, batched = encoder(ids), encoder(padded, (padded != 0).long())
    torch.testing.assert_close(batched.tokens[:, :7], alone.tokens, atol=1e-5, rtol=1e-5)
    assert batched.mask.tolist() == [[True] * 7 + [False] * 4]
    assert alone.hidden.shape == (1, 7, 24)


def test_too_long_prompts_are_refused(encoder):
    with pytest.raises(ValueError, match="257 tokens, the model takes at most 256"):
        encoder(torch.ones(1, 257, dtype=torch.long))
    with pytest.raises(ValueError, match="must be \\(batch, tokens\\)"):
        encoder(torch.ones(5, dtype=torch.long))


@torch.no_grad()
def test_segments_are_passed_to_bert(encoder):
    ids = torch.tensor([[101, 300, 1012, 102]])
    first = encoder(ids).tokens
    assert torch.equal(first, encoder(ids, token_type_ids=torch.zeros_like(ids)).tokens)
    assert (first - encoder(ids, token_type_ids=torch.ones_like(ids)).tokens).abs().max() > 0.01


def test_delimiters_are_the_configs(small_model):
    config = replace(small_model().config, delimiter_token_ids=(5,))
    features = TextEncoder(config).eval()(torch.tensor([[5, 300, 1012, 301, 5, 5]]))
    assert features.block_mask[0, 1].tolist() == [False, True, True, True, True, False]
