from __future__ import annotations

import pytest

from groundingml.inference import extract_phrases
from groundingml.inference.phrases import split_sentences


@pytest.mark.parametrize(
    ("caption", "phrases", "why"),
    [
        (
            "a woman holds a blow dryer, wearing protective goggles",
            ["woman", "blow dryer", "protective goggles"],
            "verbs in -s and -ing separate",
        ),
        ("cat . remote control .", ["cat", "remote control"], "the original prompt format"),
        (
            "Two cats are lying on a pink couch.",
            ["cats", "pink couch"],
            "numerals and auxiliaries are dropped",
        ),
        ("A man riding a wave on top of a surfboard", ["man", "wave", "surfboard"], "'top of' names nothing"),
        ("a large group of people and the dog", ["people", "dog"], "amounts name nothing"),
        ("a cup of coffee on the left", ["cup", "coffee"], "places name nothing"),
        ("a red top and blue jeans", ["red top", "blue jeans"], "a garment is no place"),
        ("a photo of a cat", ["cat"], "the picture itself is not looked for"),
        (
            "three parked cars in front of a brick building",
            ["parked cars", "brick building"],
            "-ed and -ing in names",
        ),
        ("a car parked on the street", ["car", "street"], "the same -ed as a verb"),
        (
            "a washing machine and a person washing dishes",
            ["washing machine", "person", "dishes"],
            "both uses of -ing",
        ),
        ("people sitting around a dining table", ["people", "dining table"], "a compound after a determiner"),
        ("a small running dog chasing a ball", ["small running dog", "ball"], "-ing after an adjective"),
        (
            "a boy rides bicycles and she watches birds",
            ["boy", "bicycles", "birds"],
            "ambiguous -s forms as verbs",
        ),
        (
            "bus stops, wall lights and watches",
            ["bus stops", "wall lights", "watches"],
            "the same forms as names",
        ),
        ("people hold umbrellas in the rain", ["people", "umbrellas", "rain"], "base forms"),
        ("find the cat that sits behind the sofa", ["cat", "sofa"], "an instruction with a relative clause"),
        ("the woman's red hat and his shoes", ["woman's red hat", "shoes"], "possessives"),
        ("a man's wearing a hat on someone's left hand", ["man", "hat", "someone's left hand"], "'s"),
        ("a woman is seen brushing her teeth", ["woman", "teeth"], "participles after 'is'"),
        (
            "A U.S. flag is flying above 3.5 houses",
            ["U.S. flag", "houses"],
            "dots of abbreviations and numbers",
        ),
        ("a Boeing 747 and 3 cats", ["Boeing 747", "cats"], "a number inside a name stays"),
        ("a four-legged robot quickly walking away", ["four-legged robot"], "hyphens; adverbs in -ly"),
        ("a butterfly near a family", ["butterfly", "family"], "names in -ly"),
        ("cat/dog", ["cat", "dog"], "a slash separates"),
        ("a cat and another cat", ["cat", "cat"], "repeated phrases stay, each at its place"),
        ("dogs", ["dogs"], "a single word"),
        ("red", ["red"], "an adjective alone is what was asked for"),
        ("running. walking", ["running", "walking"], "verbs alone are what was asked for"),
        ("the of and", ["the of and"], "no name at all: the words as they stand"),
        ("asdf qwer", ["asdf qwer"], "no sentence"),
        ("женщина держит фен, очки", ["женщина держит фен", "очки"], "other languages: between punctuation"),
        ("一只猫，一只狗", ["一只猫", "一只狗"], "full-width punctuation"),
        ("red cars\nblue vans", ["red cars", "blue vans"], "line ends separate"),
        ("!!! ...", [], "no words"),
        ("", [], "nothing"),
    ],
)
def test_phrases(caption: str, phrases: list[str], why: str) -> None:
    found = extract_phrases(caption)
    assert [phrase.text for phrase in found] == phrases, why


@pytest.mark.parametrize(
    "caption", ["a cat and another cat", "A U.S. flag, the woman’s hat!", "женщина держит фен"]
)
def test_phrases_are_spans_of_the_caption_in_order(caption: str) -> None:
    end = 0
    for phrase in extract_phrases(caption):
        assert caption[phrase.start : phrase.end] == phrase.text
        assert phrase.start >= end
        end = phrase.end


def test_sentences_end_at_marks_but_not_inside_abbreviations() -> None:
    caption = '"A U.S. flag. It costs 3.5 dollars! ok; then'
    sentences = [caption[start:end] for start, end in split_sentences(caption)]
    assert sentences == ["A U.S. flag.", "It costs 3.5 dollars!", "ok;", "then"]


def test_every_phrase_lies_in_one_sentence() -> None:
    caption = "running. A cat? the dog of the U.S. army; walking\nred"
    sentences = split_sentences(caption)
    for phrase in extract_phrases(caption):
        assert sum(start <= phrase.start and phrase.end <= end for start, end in sentences) == 1
