"""Training prompts: what is asked for, where its tokens are, and what happens when space is short."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from groundingml.models.grounding_dino import GroundingDino
from groundingml.training.prompts import PromptConfig, PromptSampler, TrainingPrompt

NAMES = ["cat", "remote control", "dog", "owl", "red fox"]


def words(prompt: TrainingPrompt, tokenizer: Any, name: str) -> str:
    """The text of the tokens that are said to be a name's."""
    positions = prompt.phrase_maps[prompt.phrases[name]].nonzero().flatten().tolist()
    return str(tokenizer.decode([prompt.input_ids[i] for i in positions]))


def test_token_spans_are_those_of_the_names(model: GroundingDino, tokenizer: Any) -> None:
    sampler = PromptSampler(NAMES, tokenizer, model.config, PromptConfig(all_negatives=1.0))
    prompt = sampler.sample(["cat", "remote control"], ["dog", "owl", "red fox"], random.Random(0))
    assert set(prompt.phrases) == set(NAMES)
    assert prompt.phrase_maps.shape == (5, 256)
    for name in NAMES:
        assert words(prompt, tokenizer, name) == name
    text = tokenizer.decode(prompt.input_ids)
    assert text.startswith("[CLS]")
    assert text.endswith(". [SEP]")
    assert prompt.phrase_maps.sum(dim=0).max() == 1  # no token belongs to two phrases
    assert prompt.phrase_maps.sum() == 7


def test_order_is_shuffled_and_repeatable(model: GroundingDino, tokenizer: Any) -> None:
    sampler = PromptSampler(NAMES, tokenizer, model.config, PromptConfig(all_negatives=1.0))
    prompts = [sampler.sample(["cat"], NAMES[1:], random.Random(seed)) for seed in range(20)]
    assert len({prompt.input_ids for prompt in prompts}) > 10
    assert (
        len({prompt.phrases["cat"] for prompt in prompts}) > 3
    )  # present names do not always stand in front
    again = [sampler.sample(["cat"], NAMES[1:], random.Random(seed)) for seed in range(20)]
    assert [prompt.input_ids for prompt in again] == [prompt.input_ids for prompt in prompts]


def test_the_number_of_negatives_varies_up_to_the_most(model: GroundingDino, tokenizer: Any) -> None:
    config = PromptConfig(max_negatives=3, all_negatives=0.0)
    sampler = PromptSampler(NAMES, tokenizer, model.config, config)
    counts = {len(sampler.sample(["cat"], NAMES[1:], random.Random(seed)).phrases) - 1 for seed in range(60)}
    assert counts == {1, 2, 3}
    always = PromptSampler(NAMES, tokenizer, model.config, replace(config, all_negatives=1.0))
    assert {len(always.sample(["cat"], NAMES[1:], random.Random(seed)).phrases) for seed in range(20)} == {4}


def test_present_names_go_first_when_space_is_short(model: GroundingDino, tokenizer: Any) -> None:
    """12 tokens: [CLS], [SEP] and ten more. Three one-word names with their dots take six; at most two
    negatives fit."""
    many = [f"{word} {other}" for word in ("red", "blue", "green") for other in ("car", "hat", "shoe")]
    names = ["cat", "dog", "owl", *many]
    sampler = PromptSampler(names, tokenizer, model.config, PromptConfig(max_tokens=12, all_negatives=1.0))
    for seed in range(10):
        prompt = sampler.sample(["cat", "dog", "owl"], many, random.Random(seed))
        assert len(prompt.input_ids) <= 12
        assert {"cat", "dog", "owl"} <= set(prompt.phrases)
        assert len(prompt.phrases) == 4


def test_more_present_names_than_fit_are_drawn_from(model: GroundingDino, tokenizer: Any) -> None:
    sampler = PromptSampler(NAMES, tokenizer, model.config, PromptConfig(max_tokens=7, max_negatives=0))
    drawn = [frozenset(sampler.sample(NAMES, [], random.Random(seed)).phrases) for seed in range(40)]
    assert all(1 <= len(names) <= 2 for names in drawn)
    assert set().union(*drawn) == set(NAMES)  # none is always left out


def test_an_image_without_boxes_is_asked_for_what_it_lacks(model: GroundingDino, tokenizer: Any) -> None:
    sampler = PromptSampler(NAMES, tokenizer, model.config, PromptConfig(max_negatives=0))
    assert len(sampler.sample([], NAMES, random.Random(0)).phrases) == 1
    with pytest.raises(ValueError, match="names of what it does not show"):
        sampler.sample([], [], random.Random(0))


def test_synonyms_are_drawn_from(model: GroundingDino, tokenizer: Any) -> None:
    config = PromptConfig(synonyms={"cat": ("kitten", "house cat")})
    sampler = PromptSampler(NAMES, tokenizer, model.config, config)
    asked = {words(sampler.sample(["cat"], [], random.Random(seed)), tokenizer, "cat") for seed in range(20)}
    assert asked == {"kitten", "house cat"}


def test_names_of_one_spelling_share_a_phrase(model: GroundingDino, tokenizer: Any) -> None:
    sampler = PromptSampler(["Cat", "cat"], tokenizer, model.config, PromptConfig())
    prompt = sampler.sample(["cat"], ["Cat"], random.Random(0))
    assert len(prompt.phrase_maps) == 1


def test_names_beyond_the_vocabulary_are_left_out(model: GroundingDino, tokenizer: Any) -> None:
    sampler = PromptSampler(["cat", "🦄"], tokenizer, model.config, PromptConfig())
    assert sampler.ignored == {"🦄"}
    assert set(sampler.sample(["🦄", "cat"], [], random.Random(0)).phrases) == {"cat"}
