"""Text encoded phrase by phrase equals text encoded whole."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from groundingml.models.grounding_dino import GroundingDino
from groundingml.training.phrase_cache import PhraseCache
from groundingml.training.prompts import PromptConfig, PromptSampler

NAMES = ["cat", "remote control", "blow dryer", "a very long name of a thing", "dog"]


@pytest.fixture
def batch(model: GroundingDino, tokenizer: Any) -> tuple[Tensor, Tensor]:
    sampler = PromptSampler(NAMES, tokenizer, model.config, PromptConfig())
    rows = [
        sampler.sample(present, [], random.Random(1)).input_ids for present in (NAMES[:2], NAMES, NAMES[3:4])
    ]
    length = max(len(row) for row in rows)
    input_ids = torch.tensor([list(row) + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return input_ids, mask


@pytest.mark.parametrize("sees_cls", [False, True])
def test_equal_to_encoding_the_whole_prompts(
    sees_cls: bool, model: GroundingDino, batch: tuple[Tensor, Tensor]
) -> None:
    model.text_encoder.sees_cls = sees_cls
    model.eval()
    cache = PhraseCache(model.text_encoder)
    with torch.no_grad():
        expected = model.encode_text(*batch)
        for _ in range(2):  # the second time everything comes from the cache
            got = cache.encode(*batch)
            for name in ("hidden", "tokens", "positions"):
                torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
            assert got.mask.equal(expected.mask)
            assert got.block_mask.equal(expected.block_mask)


def test_bert_runs_once_for_each_phrase_and_without_dropout(
    model: GroundingDino, batch: tuple[Tensor, Tensor]
) -> None:
    calls: list[int] = []
    model.text_encoder.bert.register_forward_hook(lambda module, args, out: calls.append(len(out[0])))
    model.train()
    cache = PhraseCache(model.text_encoder)
    first = cache.encode(*batch)
    second = cache.encode(*batch)
    assert len(calls) == 1
    assert calls[0] == len(NAMES) + 3  # five names, [CLS], [SEP] and padding
    assert first.hidden.equal(second.hidden)
    assert model.text_encoder.bert.training


def test_gradients_reach_the_projection_but_not_bert(
    model: GroundingDino, batch: tuple[Tensor, Tensor]
) -> None:
    PhraseCache(model.text_encoder).encode(*batch).tokens.sum().backward()
    assert model.text_encoder.projection.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.text_encoder.bert.parameters())
