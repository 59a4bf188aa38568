"""What annotators type: phrases, and the labels they mean."""

from __future__ import annotations

from typing import Any

import pytest

from groundingml.labelstudio.label_config import LabelConfig, parse_label_config
from groundingml.labelstudio.prompts import query_for_labels, query_for_text, split_phrases


@pytest.fixture
def config(config_xml: str) -> LabelConfig:
    return parse_label_config(config_xml)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("cat . remote control", ["cat", "remote control"]),
        ("cat,dog;fox\nred  ball\r\n", ["cat", "dog", "fox", "red ball"]),
        ("Cat. cat . CAT", ["Cat"]),
        (" ...,; \n ", []),
        ("?! . cat", ["cat"]),
        ("кот, 犬", ["кот", "犬"]),
        ("traffic-light/sign", ["traffic-light/sign"]),
        ("person with a hat, man in red shirt", ["person with a hat", "man in red shirt"]),
        (
            "a woman holds a blow dryer, wearing protective goggles",
            ["woman", "blow dryer", "protective goggles"],
        ),
        ("There are two cats on the sofa.", ["cats", "sofa"]),
        ("People are walking their dogs", ["People", "dogs"]),
        ("This is a cup. red ball, the spoon", ["cup", "red ball", "spoon"]),
        ("A cat", ["cat"]),
        ("a", ["a"]),
        ("the", ["the"]),
        ("A sock", ["sock"]),
    ],
)
def test_split_phrases(text: str, phrases: list[str]) -> None:
    assert split_phrases(text) == phrases


def test_what_is_a_label_is_no_sentence() -> None:
    assert split_phrases("the  Thinker", ["The Thinker"]) == ["the Thinker"]
    assert split_phrases("a cat, the thinker", ["The Thinker"]) == ["cat", "thinker"], "part of a sentence"
    assert split_phrases("cat, the thinker", ["The Thinker"]) == ["cat", "the thinker"]


def asked(query: Any) -> list[tuple[str, tuple[str, ...], list[str | None]]]:
    return [
        (wanted.name, wanted.prompts, [target.label for target in wanted.targets]) for wanted in query.wanted
    ]


def test_project_labels(config: LabelConfig) -> None:
    assert asked(query_for_labels(config, config.images[0], {})) == [
        ("Cat", ("cat", "kitten"), ["Cat"]),
        ("canine", ("dog", "puppy"), ["canine"]),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CAT", [("Cat", ("cat", "kitten"), ["Cat"])]),  # a label's name: all its prompts
        ("canine", [("canine", ("dog", "puppy"), ["canine"])]),  # its alias
        ("dog", [("canine", ("dog", "puppy"), ["canine"])]),  # its value
        ("Puppy", [("canine", ("Puppy",), ["canine"])]),  # one of its prompts: as typed
        ("red ball", [("red ball", ("red ball",), [None])]),  # no label
        ("A dog next to a sofa", [("canine", ("dog", "puppy"), ["canine"]), ("sofa", ("sofa",), [None])]),
        ("puppy . sofa", [("canine", ("puppy",), ["canine"]), ("sofa", ("sofa",), [None])]),
    ],
)
def test_typed_phrases_become_labels(config: LabelConfig, text: str, expected: list[Any]) -> None:
    assert asked(query_for_text(config, config.images[0], text, {})) == expected


def test_a_label_keeps_its_other_names_beside_a_prompt(config_xml: str) -> None:
    xml = config_xml.replace('value="Cat"', 'value="Cat" prompt="fluffy cat"')
    config = parse_label_config(xml)
    for phrase, prompts in (
        ("Cat", ("fluffy cat",)),
        ("kitten", ("kitten",)),
        ("fluffy cat", ("fluffy cat",)),
    ):
        query = query_for_text(config, config.images[0], phrase, {})
        assert asked(query) == [("Cat", prompts, ["Cat"])]


def test_phrases_that_match_no_label_get_the_label_for_them() -> None:
    xml = """<View><Image name="i" value="$image"/>
      <RectangleLabels name="a" toName="i"><Label value="Cat"/></RectangleLabels>
      <RectangleLabels name="b" toName="i" unmatched="Other" model_score_threshold="0.4">
        <Label value="Other"/><Label value="Dog"/></RectangleLabels></View>"""
    config = parse_label_config(xml)
    (wanted,) = query_for_text(config, config.images[0], "sofa", {}).wanted
    (target,) = wanted.targets
    assert (wanted.prompts, target.control.name, target.label) == (("sofa",), "b", "Other")
    assert (target.phrase, target.threshold) == ("sofa", 0.4)
    names = [wanted.name for wanted in query_for_labels(config, config.images[0], {}).wanted]
    assert names == ["Cat", "Dog"], "Other looks like nothing"


def test_thresholds_and_negative_prompts_of_labels_and_controls() -> None:
    xml = """<View><Image name="i" value="$image"/>
      <RectangleLabels name="a" toName="i" model_score_threshold="0.3" negative_prompts="drawing">
        <Label value="Cat" score_threshold="0.6" negative_prompts="toy cat"/><Label value="Dog"/>
      </RectangleLabels></View>"""
    config = parse_label_config(xml)
    cat, dog = query_for_labels(config, config.images[0], {}).wanted
    assert (cat.targets[0].threshold, cat.negative_prompts) == (0.6, ("drawing", "toy cat"))
    assert (dog.targets[0].threshold, dog.negative_prompts) == (0.3, ("drawing",))


def test_a_name_in_two_controls_is_looked_for_once() -> None:
    xml = """<View><Image name="i" value="$image"/>
      <RectangleLabels name="a" toName="i"><Label value="Cat" predicted_values="cat"/></RectangleLabels>
      <RectangleLabels name="b" toName="i"><Label value="Cat" predicted_values="kitten"/></RectangleLabels>
    </View>"""
    config = parse_label_config(xml)
    (wanted,) = query_for_labels(config, config.images[0], {}).wanted
    assert wanted.prompts == ("cat", "kitten")
    assert [target.control.name for target in wanted.targets] == ["a", "b"]
