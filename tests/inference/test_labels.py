from __future__ import annotations

import subprocess
import sys

import pytest

from groundingml.inference import Label, prompt_digest
from groundingml.inference.labels import Labels, normalise_labels


@pytest.mark.parametrize(
    ("labels", "expected", "why"),
    [
        (["cat", "dog"], [("cat", ("cat",)), ("dog", ("dog",))], "names are their own prompts"),
        (("cat",), [("cat", ("cat",))], "any sequence"),
        (["cat", "cat"], [("cat", ("cat",))], "a duplicate counts once"),
        (["Cat", "cat"], [("Cat", ("Cat",)), ("cat", ("cat",))], "names are compared exactly"),
        ({"pet": ["cat", "dog"]}, [("pet", ("cat", "dog"))], "aliases"),
        ({"pet": "cat"}, [("pet", ("cat",))], "one alias as a string"),
        ({"pet": []}, [("pet", ("pet",))], "no alias: the name itself"),
        (
            [Label("a", ("x",)), Label("a", ("y", "x"))],
            [("a", ("x", "y"))],
            "a name given twice unites its prompts",
        ),
        ([Label("a", "one prompt")], [("a", ("one prompt",))], "a string is one prompt, not its letters"),
        (["cat, tabby"], [("cat, tabby", ("cat, tabby",))], "commas inside a name stay"),
        (["🐱"], [("🐱", ("🐱",))], "symbols are left to the vocabulary"),
    ],
)
def test_normalise(labels: Labels, expected: list[tuple[str, tuple[str, ...]]], why: str) -> None:
    assert [(label.name, label.texts) for label in normalise_labels(labels)] == expected, why


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no labels: give at least one"),
        ({}, "no labels"),
        ("cat", r"must be a list of names.*labels=\['cat'\]"),
        ([""], "nothing to look for"),
        (["cat", "  "], "nothing to look for"),
        (["..."], "nothing to look for"),
        ([Label("cat", negative_prompts="!")], "label 'cat': there is nothing to look for in the prompt '!'"),
        ({"pet": ["cat", "?"]}, "label 'pet': there is nothing to look for in the prompt '?'"),
        ([3], "a label is a string or a Label, got 3"),
    ],
)
def test_what_cannot_be_asked_for(labels: Labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalise_labels(labels)


def test_thresholds_are_checked_and_united() -> None:
    with pytest.raises(ValueError, match=r"label 'cat': the threshold must lie in 0..1, got 35"):
        Label("cat", threshold=35)
    assert normalise_labels([Label("a"), Label("a", threshold=0.2)])[0].threshold == 0.2
    assert normalise_labels([Label("a", threshold=0.1), Label("a", threshold=0.2)])[0].threshold == 0.1


def test_negative_prompts_are_united() -> None:
    (label,) = normalise_labels(
        [Label("a", negative_prompts="toy"), Label("a", negative_prompts=("doll", "toy"))]
    )
    assert label.negative_prompts == ("toy", "doll")
    assert label.prompts == ("a",)


def test_digest_changes_with_the_question() -> None:
    digest = prompt_digest(["cat", "dog"], 0.3)
    assert len(digest) == 12
    assert int(digest, 16) >= 0
    assert digest == prompt_digest(["cat", "dog", "cat"], 0.3)
    assert digest == prompt_digest({"cat": "cat", "dog": []}, 0.3)
    others = {
        prompt_digest(["dog", "cat"], 0.3),
        prompt_digest(["cat", "dog"], 0.4),
        prompt_digest(["cat", "dog"], None),
        prompt_digest(["cat", "Dog"], 0.3),
        prompt_digest({"cat": "kitten", "dog": []}, 0.3),
        prompt_digest([Label("cat", threshold=0.1), "dog"], 0.3),
        prompt_digest(["cat", "dog"], 0.3, tiling=True),
        prompt_digest(["cat dog"], 0.3),
        prompt_digest([Label("cat", negative_prompts=("toy",)), "dog"], 0.3),
        prompt_digest(["cat", Label("dog", negative_prompts=("toy",))], 0.3),
    }
    assert len(others) == 10
    assert digest not in others


def test_digest_is_the_same_in_every_process() -> None:
    code = "from groundingml.inference import prompt_digest; print(prompt_digest(['кот', 'dog'], 0.3, a=1))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert other == prompt_digest(["кот", "dog"], 0.3, a=1) == "58ed7eb9b0c9"
