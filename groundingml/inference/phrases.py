"""Noun phrases of a free English caption, found by rules: what there is to look for in the picture.

A Grounding DINO scores every word of a caption; which words name things has to be decided outside. The rules
here need
no parser and no download: words that cannot be part of a name (function words, verbs, adverbs, punctuation)
    end a phrase,
what remains between them is one. Whether "-ing", "-ed" and "-s" forms are verbs is read from their
neighbours.

Limits: English only. In another language, what stands between punctuation becomes one phrase, and text that
    is no
sentence ("asdf") is one phrase as a whole; writing labels instead is exact in every language.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["determiner", "preposition", "pronoun", "function", "mark", "end"]


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: ``caption[start:end] == text``."""

    text: str
    start: int
    end: int


def extract_phrases(caption: str) -> list[Phrase]:
    """Noun phrases of the caption in reading order, without articles and numerals; repeated ones are
    repeated.

    >>> [phrase.text for phrase in extract_phrases("a woman holds a blow dryer, wearing protective goggles")]
    ['woman', 'blow dryer', 'protective goggles']

    Where the rules find no name ("running"), all words between punctuation are; a caption without words
    gives none.
    """
    words = _words(caption)
    runs: list[list[int]] = [[]]
    for index in range(len(words)):
        if _is_nominal(words, index, runs[-1]):
            runs[-1].append(index)
        elif runs[-1]:
            runs.append([])
    runs = [run for run in runs if run and not _is_only_a_place_or_amount(words, run)]
    if not runs:
        runs = [
            list(group) for mark, group in groupby(range(len(words)), lambda i: words[i].mark) if not mark
        ]
    spans = [(words[run[0]].start, words[run[-1]].end - _possessive_ending(words[run[-1]])) for run in runs]
    return [Phrase(caption[start:end], start, end) for start, end in spans]


def split_sentences(caption: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, its closing mark included. Dots of abbreviations and numbers end
    nothing."""
    spans: list[tuple[int, int]] = []
    start: int | None = None
    end = 0
    for word in _words(caption):
        closes = word.mark and word.text in ".?!;\n。？！"
        if start is None and not word.mark:
            start = word.start
        if start is not None:
            end = word.end
            if closes:
                spans.append((start, end))
                start = None
    if start is not None:
        spans.append((start, end))
    return spans


@dataclass(frozen=True)
class _Word:
    text: str  # lower case
    start: int
    end: int
    mark: bool  # punctuation


# An abbreviation with its dots, a number with its dots and commas, a word with its hyphens and apostrophes,
# or a mark.
_PIECES = re.compile(r"(?:[^\W\d_]\.){2,}|\d+(?:[.,]\d+)+\w*|\w+(?:[-'’&]\w+)*|\n|[^\w\s]", re.UNICODE)


def _words(caption: str) -> list[_Word]:
    return [
        _Word(
            match.group().lower().replace("’", "'"),
            match.start(),
            match.end(),
            not re.match(r"\w", match.group()),
        )
        for match in _PIECES.finditer(caption)
    ]


def _possessive_ending(word: _Word) -> int:
    """How many letters to leave out at the end of a phrase: "the man's wearing a hat" names a man."""
    return 2 if word.text.endswith("'s") else 0


def _is_number(word: _Word) -> bool:
    return word.text.replace(".", "").replace(",", "").isdigit()


def _kind(words: list[_Word], index: int) -> Kind | None:
    """What the word at ``index`` is, whatever stands beside it; None for words with a meaning of their
    own."""
    if not 0 <= index < len(words):
        return "end"
    word = words[index]
    if word.mark:
        return "mark"
    if word.text in _DETERMINERS or _is_number(word):
        return "determiner"
    if word.text in _PREPOSITIONS:
        return "preposition"
    if word.text in _PRONOUNS:
        return "pronoun"
    if word.text in _FUNCTION_WORDS or (word.text.endswith("ly") and word.text not in _LY_NAMES):
        return "function"
    return None


def _is_nominal(words: list[_Word], index: int, run: list[int]) -> bool:
    kind = _kind(words, index)
    if kind == "determiner" and _is_number(words[index]):
        return bool(run)  # "boeing 747" keeps its number, "3 cats" does not
    return kind is None and not _is_verb(words, index, run)


def _is_verb(words: list[_Word], index: int, run: list[int]) -> bool:
    word = words[index].text
    before, after = _kind(words, index - 1), _kind(words, index + 1)
    if word in _VERB_S and index and words[index - 1].text in ("that", "which"):
        return True  # "the cat that sits"
    previous = words[index - 1].text if index else ""
    described = before == "determiner" or (bool(run) and previous in _ADJECTIVES)
    owned = previous.endswith("'s") and not word.endswith("ing")
    if described or owned or "-" in word:
        return False  # "a running dog", "two small watches", "a man's left hand", "four-legged"
    goes_on = after in (None, "determiner", "pronoun", "preposition")
    has_object = after in ("determiner", "pronoun")
    if word in _VERB_S:
        return True
    if word in _VERB_OR_NOUN_S:  # "a boy rides bikes", "a man walks down the street" but "donkey rides"
        return before == "pronoun" or (bool(run) and goes_on)
    if word in _NOUN_OR_VERB_S:  # "a boy watches a film" but "traffic lights on a street"
        return before == "pronoun" or (bool(run) and has_object)
    if word in _VERB_BASE:  # "men hold umbrellas", "find the cat" but "hold" alone
        return before == "pronoun" or (goes_on if run else has_object or after == "preposition")
    if word.endswith("ing") and len(word) > 4 and word not in _ING_NAMES:
        following = words[index + 1].text if index + 1 < len(words) else ""
        return not (word in _ING_MODIFIERS and following.removesuffix("s") in _ING_MODIFIERS[word])
    if word in _VERB_PAST or (word.endswith("ed") and len(word) > 4 and word not in _ED_NAMES):
        return (
            bool(run) or after is not None or previous in _BE
        )  # "parked cars", "broken glass" but "a car parked here"
    return False


def _is_only_a_place_or_amount(words: list[_Word], run: list[int]) -> bool:
    """ "a large GROUP of people", "on TOP of", "in the BACKGROUND": words that name nothing to draw a box
    around."""
    last = words[run[-1]].text
    followed_by_of = run[-1] + 1 < len(words) and words[run[-1] + 1].text == "of"
    if last in _AMOUNTS and followed_by_of:
        return True
    if last not in _PLACES or any(words[i].text not in _PLACES | _ADJECTIVES for i in run):
        return False
    first = run[0]
    if first > 0 and words[first - 1].text in ("the", "its"):
        first -= 1
    return followed_by_of or _kind(words, first - 1) == "preposition"


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _set(
    "a an the this that these those my your his her its our their some any each every all both no another "
    "other such one two three four five six seven eight nine ten eleven twelve dozen hundred several many "
    "few more most various multiple different same either neither what which whose"
)
_PREPOSITIONS = _set(
    "of in on at by for with without from to into onto upon over under above below beneath beside besides "
    "between among amid behind beyond across along around through toward towards against near inside "
    "outside within during before after off up down out about like as per via than until since past "
    "underneath atop alongside"
)
_PRONOUNS = _set(
    "i you he she it we they me him us them who whom that which there here someone something somebody "
    "anyone anything everyone everything nobody nothing myself itself himself herself themselves"
)
_FUNCTION_WORDS = _set(
    "and or but nor so yet if while when where why how because although though whether then is are was "
    "were be been being am do does did doing done has have had having can could will would shall should "
    "may might must not n't isn't aren't don't doesn't it's he's she's that's there's very too also just "
    "only even still again away together apart next ahead back nearby now today please let let's yes "
    "quite rather almost maybe perhaps etc eg ie"
)
_BE = _set("is are was were be been being")
_LY_NAMES = _set(
    "family butterfly dragonfly fly firefly gadfly lily jelly belly bully ally dolly holly gully curly "
    "woolly lovely ugly friendly elderly silly hilly trolly supply assembly monopoly ply italy july "
    "bubbly smelly wobbly"
)
_ADJECTIVES = _set(
    "big small large little tiny huge tall short long old young new red green blue yellow white black "
    "brown gray grey pink purple orange golden silver dark light bright wooden metal plastic glass "
    "striped round square empty full open closed colorful colourful beautiful pretty cute wild domestic "
    "wet dry dirty clean hot cold male female far near"
)
_ING_NAMES = _set(
    "building ceiling painting wedding earring string spring clothing railing lightning morning evening "
    "pudding dumpling drawing lining awning icing topping frosting flooring wiring tubing piping bedding "
    "stocking legging thing sling swing sting bling duckling gosling sapling siding molding moulding "
    "scaffolding covering filling landing opening crossing carving engraving herring pairing seedling "
    "sibling sterling viking offspring being parking"
)
# First word -> second words with which it makes one name.
_ING_MODIFIERS = {
    "dining": _set("table room chair hall set"),
    "washing": _set("machine"),
    "swimming": _set("pool cap trunk suit"),
    "frying": _set("pan"),
    "sewing": _set("machine"),
    "shopping": _set("cart bag basket mall trolley center"),
    "living": _set("room"),
    "cutting": _set("board"),
    "rocking": _set("chair horse"),
    "rolling": _set("pin suitcase"),
    "sleeping": _set("bag"),
    "boxing": _set("glove ring"),
    "walking": _set("stick cane"),
    "fishing": _set("rod boat net pole hook"),
    "sailing": _set("boat ship"),
    "mixing": _set("bowl"),
    "baking": _set("sheet tray dish"),
    "watering": _set("can"),
    "vending": _set("machine"),
    "running": _set("shoe track"),
    "hiking": _set("boot pole"),
    "riding": _set("boot helmet"),
    "measuring": _set("cup tape spoon"),
    "knitting": _set("needle"),
    "chewing": _set("gum"),
    "wrapping": _set("paper"),
    "serving": _set("tray spoon dish"),
    "racing": _set("car bike"),
    "steering": _set("wheel"),
    "wedding": _set("dress cake ring"),
    "folding": _set("chair table"),
    "ironing": _set("board"),
    "changing": _set("table room"),
    "waiting": _set("room"),
    "sliding": _set("door"),
    "flying": _set("saucer disc"),
}
_ED_NAMES = _set("hundred moped biped sacred naked wicked ragged rugged shred sled seabed flatbed")
_VERB_S = _set(
    "holds wears sits eats carries throws reads writes hangs lies leans contains includes brings takes "
    "makes gives sells buys pulls pushes catches kicks hits sleeps runs jumps swims smiles laughs talks "
    "speaks sings cooks bakes cleans uses shows says goes comes gets puts keeps sees pets feeds chases "
    "climbs crosses enters leaves approaches surrounds features depicts prepares performs poses waits "
    "tries appears seems belongs grows flies grazes plays stares kneels crouches bends lays gazes pours "
    "opens closes picks hugs kisses teaches learns listens"
)
# Mostly verbs after a name, and mostly names after a name ("a man walks", "traffic lights").
_VERB_OR_NOUN_S = _set(
    "walks rides cuts rests looks faces stands works travels turns moves drives reaches serves dances "
    "draws fills overlooks touches shaves skates surfs rolls floats drags lifts"
)
_NOUN_OR_VERB_S = _set(
    "watches drinks lights parks stops swings ties points helps paints covers checks lines brushes shops "
    "skis bikes passes types signs plants steps"
)
_VERB_BASE = _set(
    "hold lie wear sit eat carry throw read write hang lean contain include bring take make give sell buy "
    "pull push catch sleep run jump swim smile laugh talk speak sing enjoy feed chase climb find show "
    "detect locate count segment see look ride play watch stand walk wait pose gather surround"
)
_VERB_PAST = _set(
    "held wore sat stood rode ate threw took made gave lay hung worn seen shown taken given broken "
    "written drawn driven eaten thrown built cut put set kept caught brought bought sold found left ran "
    "swam sang drank sung flown grown lit bent sewn torn spread split stuck tied filled topped"
)
_AMOUNTS = _set(
    "group groups pair pairs couple bunch lot lots number piece pieces kind kinds type types sort photo "
    "photos picture pictures image images photograph photographs view close-up closeup shot scene row "
    "rows variety collection crowd herd flock part parts rest majority"
)
_PLACES = _set(
    "front top bottom back side sides left right middle center centre background foreground edge corner "
    "end distance hand-side left-hand right-hand"
)
