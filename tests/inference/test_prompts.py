from __future__ import annotations

import logging

import pytest
import torch
from transformers import BertTokenizerFast

from groundingml.inference import Label, PromptError
from groundingml.inference.labels import Labels, normalise_labels
from groundingml.inference.prompts import PromptPlan, PromptPlanner
from groundingml.models.grounding_dino.text import phrase_blocks


def spelled(plan: PromptPlan, tokenizer: BertTokenizerFast) -> list[list[str]]:
    """The tokens that count for each prompt, in order."""
    return [
        tokenizer.convert_ids_to_tokens([chunk.input_ids[position] for position in prompt.positions])
        for chunk in plan.chunks
        for prompt in chunk.prompts
    ]


@pytest.mark.parametrize(
    ("labels", "tokens", "why"),
    [
        (["cat"], [["cat"]], "one label"),
        (["cat", "remote control"], [["cat"], ["remote", "control"]], "several words are one prompt"),
        (["CAT"], [["cat"]], "case does not matter"),
        (["café"], [["cafe"]], "accents are stripped"),
        (["U.S. flag"], [["u", "s", "flag"]], "dots would end the block: left out"),
        (["who?"], [["who"]], "question marks would as well"),
        (["and/or"], [["and", "/", "or"]], "a slash is an ordinary token"),
        (["cup, red"], [["cup", ",", "red"]], "a comma is an ordinary token"),
        (["T-shirt"], [["t", "-", "shirt"]], "a hyphen is an ordinary token"),
        (["driver's seat"], [["driver", "'", "s", "seat"]], "an apostrophe too"),
        (["goggles"], [["go", "##ggles"]], "rare words are spelled in pieces"),
        (["перчатки"], [["п", "##е", "##р", "##ч", "##а", "##т", "##к", "##и"]], "other alphabets too"),
        (["🐱 cat"], [["cat"]], "[UNK] beside a word does not count"),
        (["[SEP] cat [CLS]"], [["cat"]], "names of special tokens are not obeyed"),
        (["  remote \n control "], [["remote", "control"]], "white space does not matter"),
        ({"pet": ["cat", "small dog"]}, [["cat"], ["small", "dog"]], "aliases are prompts of their own"),
    ],
)
def test_tokens_that_count(
    planner: PromptPlanner, tokenizer: BertTokenizerFast, labels: Labels, tokens: list[list[str]], why: str
) -> None:
    plan = planner.plan_labels(normalise_labels(labels))
    assert spelled(plan, tokenizer) == tokens, why


@pytest.mark.parametrize(
    "labels", [["cat", "remote control"], ["and/or", "cup, red"], ["goggles"], ["🐱 cat"]]
)
def test_ids_are_those_of_the_usual_caption(
    planner: PromptPlanner, tokenizer: BertTokenizerFast, labels: list[str]
) -> None:
    (chunk,) = planner.plan_labels(normalise_labels(labels)).chunks
    assert list(chunk.input_ids) == tokenizer(chunk.text, padding=False, truncation=False)["input_ids"]
    assert chunk.text == "".join(f"{label} . " for label in labels).strip()


@pytest.mark.parametrize("labels", [["U.S. flag", "a?b", "cat", "[SEP] x"], ["3.5 mm jack", "Mr. Bean"]])
def test_the_network_sees_one_block_for_each_prompt(planner: PromptPlanner, labels: list[str]) -> None:
    (chunk,) = planner.plan_labels(normalise_labels(labels)).chunks
    ids = torch.tensor([chunk.input_ids])
    blocks, _ = phrase_blocks(ids, (101, 102, 1012, 1029))
    for prompt in chunk.prompts:
        first = blocks[0, prompt.positions[0]].nonzero().flatten().tolist()
        assert set(prompt.positions) <= set(first)
        for other in chunk.prompts:
            assert other is prompt or not set(other.positions) & set(first)


@pytest.mark.parametrize(
    ("labels", "owners", "why"),
    [
        (["Cat", "cat"], [(0, 1)], "one prompt, both labels"),
        ({"pet": ["cat", "dog"], "animal": ["dog"]}, [(0,), (0, 1)], "a shared alias"),
        ({"pet": ["cat", "Cat", "cat."]}, [(0,)], "aliases with equal tokens are one"),
        (["us", "U.S"], [(0,), (1,)], "different tokens stay apart"),
    ],
)
def test_a_prompt_is_put_in_once(
    planner: PromptPlanner, labels: Labels, owners: list[tuple[int, ...]], why: str
) -> None:
    (chunk,) = planner.plan_labels(normalise_labels(labels)).chunks
    assert [prompt.label_ids for prompt in chunk.prompts] == owners, why


@pytest.mark.parametrize("count", [1, 84, 85, 1200])
def test_chunks(planner: PromptPlanner, tokenizer: BertTokenizerFast, count: int) -> None:
    labels = [f"thing {number}" for number in range(count)]
    plan = planner.plan_labels(normalise_labels(labels))
    for chunk in plan.chunks:
        assert len(chunk.input_ids) <= 256
        assert chunk.input_ids[0] == tokenizer.cls_token_id
        assert tokenizer.convert_ids_to_tokens(list(chunk.input_ids[-2:])) == [".", "[SEP]"]
    prompts = [prompt for chunk in plan.chunks for prompt in chunk.prompts]
    assert [prompt.label_ids for prompt in prompts] == [(number,) for number in range(count)]
    assert [prompt.number for prompt in prompts] == list(range(count))
    words = [tokenizer.convert_tokens_to_string(tokens) for tokens in spelled(plan, tokenizer)]
    assert words == labels


def test_chunks_are_full(tokenizer: BertTokenizerFast) -> None:
    letters = [Label(chr(97 + number)) for number in range(26)]  # with its dot, each takes two tokens
    small = PromptPlanner(tokenizer, max_tokens=2 + 2 * 13)
    assert [len(chunk.input_ids) for chunk in small.plan_labels(letters).chunks] == [28, 28]
    tight = PromptPlanner(tokenizer, max_tokens=1 + 2 * 13)
    assert [len(chunk.input_ids) for chunk in tight.plan_labels(letters).chunks] == [26, 26, 6]


@pytest.mark.parametrize(("words", "fits"), [(253, True), (254, False)])
def test_a_label_that_is_too_long_alone(planner: PromptPlanner, words: int, fits: bool) -> None:
    labels = [Label("cat"), Label("long", (" ".join(["cat"] * words),))]
    if fits:
        assert [len(chunk.input_ids) for chunk in planner.plan_labels(labels).chunks] == [4, 256]
    else:
        with pytest.raises(PromptError, match=r"label 'long': its prompt has 254 tokens, at most 253 fit"):
            planner.plan_labels(labels)


def test_labels_outside_the_vocabulary(planner: PromptPlanner, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plan = planner.plan_labels(normalise_labels(["🐱", "cat", "🐶"]))
    assert plan.ignored == ("🐱", "🐶")
    assert [prompt.label_ids for prompt in plan.chunks[0].prompts] == [(1,)]
    assert "no word for it" in caplog.text
    with pytest.raises(PromptError, match="no word for '🐱'"):
        planner.plan_labels(normalise_labels(["🐱"]))


@pytest.mark.parametrize(
    ("caption", "labels", "tokens", "why"),
    [
        (
            "a woman holds a blow dryer, wearing protective goggles",
            ["woman", "blow dryer", "protective goggles"],
            [["woman"], ["blow", "dry", "##er"], ["protective", "go", "##ggles"]],
            "noun phrases",
        ),
        (
            "a cat and another Cat",
            ["cat"],
            [["cat"], ["cat"]],
            "a repeated phrase is one label, twice in the text",
        ),
        ("A U.S. flag.", ["U.S. flag"], [["u", "s", "flag"]], "abbreviations do not end a block"),
        ("a cat. a dog", ["cat", "dog"], [["cat"], ["dog"]], "several sentences"),
        ("asdf", ["asdf"], [["as", "##df"]], "no sentence"),
        ("a [SEP] cat", ["SEP", "cat"], [["cat"]], "names of special tokens are not obeyed"),
    ],
)
def test_captions(
    planner: PromptPlanner,
    tokenizer: BertTokenizerFast,
    caption: str,
    labels: list[str],
    tokens: list[list[str]],
    why: str,
) -> None:
    plan = planner.plan_caption(caption)
    assert [label.name for label in plan.labels] == labels, why
    assert spelled(plan, tokenizer) == tokens, why


def test_a_caption_stays_whole_and_ends_with_a_dot(
    planner: PromptPlanner, tokenizer: BertTokenizerFast
) -> None:
    (chunk,) = planner.plan_caption("a woman, wearing goggles").chunks
    assert tokenizer.convert_ids_to_tokens(list(chunk.input_ids)) == (
        ["[CLS]", "a", "woman", ",", "wearing", "go", "##ggles", ".", "[SEP]"]
    )
    (chunk,) = planner.plan_caption("is there a cat? Or a dog.").chunks
    assert tokenizer.convert_ids_to_tokens(list(chunk.input_ids)) == (
        ["[CLS]", "is", "there", "a", "cat", "?", "or", "a", "dog", ".", "[SEP]"]
    )


def test_a_long_caption_is_split_between_sentences(planner: PromptPlanner) -> None:
    caption = "a small cat sits on a red table near the window. " * 60
    plan = planner.plan_caption(caption)
    assert [label.name for label in plan.labels] == ["small cat", "red table", "window"]
    assert len(plan.chunks) > 2
    assert all(len(chunk.input_ids) <= 256 for chunk in plan.chunks)
    with pytest.raises(PromptError, match="split it with a full stop"):
        planner.plan_caption("a cat and a dog and " * 80)


@pytest.mark.parametrize(
    ("caption", "message"), [("!!!", "nothing to look for"), ("🐱", "nothing to look for"), ("猫", "no word")]
)
def test_captions_with_nothing_to_look_for(planner: PromptPlanner, caption: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        planner.plan_caption(caption)


def test_a_tokenizer_with_settings_of_its_own_changes_nothing(
    planner: PromptPlanner, tokenizer: BertTokenizerFast
) -> None:
    """The vocabulary that ships with the embedded text encoder asks for padding to 128 tokens."""
    labels = normalise_labels([f"thing {number}" for number in range(300)])
    before = planner.plan_labels(labels)
    tokenizer.backend_tokenizer.enable_padding(length=128)
    tokenizer.backend_tokenizer.enable_truncation(3)
    try:
        assert planner.plan_labels(labels) == before
    finally:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()


def test_phrases_as_blocks_of_their_own(planner: PromptPlanner, tokenizer: BertTokenizerFast) -> None:
    plan = planner.plan_phrases("a woman and another Woman, wearing a U.S. flag")
    assert [label.name for label in plan.labels] == ["woman", "U.S. flag"]
    (chunk,) = plan.chunks
    assert chunk.text == "woman . U.S. flag ."
    assert spelled(plan, tokenizer) == [["woman"], ["u", "s", "flag"]]
    with pytest.raises(PromptError, match="nothing to look for"):
        planner.plan_phrases("...")
