"""Labels or a caption -> the token sequences that the network reads, and which tokens belong to which label.

Everything is decided on token ids, so that a label's score is taken from exactly its own tokens:

* Each prompt becomes one block, ``[CLS] cat . remote control . [SEP]``; the network lets tokens attend inside their
  block only. Delimiters inside a prompt would split it, so the ``.`` and ``?`` of "U.S. flag" or "who?" are left out.
  Commas, slashes, hyphens and apostrophes are ordinary tokens and stay.
* Case does not matter (the BERT vocabulary is uncased, accents are stripped). A prompt asked for by two labels is put
  in once and scores for both.
* Words outside the vocabulary are spelled in pieces ("перчатки": eight of them), which the network can read but has
  hardly been trained on. Characters that it lacks altogether (emoji, many Chinese characters) become ``[UNK]``; these
  carry no meaning and never count towards a score. A label of nothing but ``[UNK]`` cannot be looked for: it is left
  out with a warning, and when nothing else remains, with an error.
* As many blocks as fit go into one chunk of 256 tokens; the next chunk takes the rest. A prompt is never split: one
  that is too long alone is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from groundingml.inference.labels import Label
from groundingml.inference.phrases import Phrase, extract_phrases, split_sentences

Tokenizer: TypeAlias = Any  # transformers.PreTrainedTokenizerFast with BERT's vocabulary

_log = logging.getLogger(__name__)


class PromptError(ValueError):
    """What was asked for cannot be put to the network."""


@dataclass(frozen=True)
class Prompt:
    """One block of a chunk: the positions of its meaningful tokens, and the labels (by number) it scores for."""

    number: int  # among all prompts of the plan
    positions: tuple[int, ...]
    label_ids: tuple[int, ...]


@dataclass(frozen=True)
class TextChunk:
    """One token sequence for the network: at most 256 tokens, from [CLS] to [SEP]."""

    text: str
    input_ids: tuple[int, ...]
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class PromptPlan:
    """Everything to put to the network for one question."""

    labels: tuple[Label, ...]
    chunks: tuple[TextChunk, ...]
    ignored: tuple[str, ...] = ()  # label names that the vocabulary cannot express at all


def plan_labels(labels: Sequence[Label], tokenizer: Tokenizer, max_tokens: int = 256) -> PromptPlan:
    """Chunks for a list of labels (see :func:`groundingml.inference.labels.normalise_labels`).

    Raises:
        PromptError: a prompt is too long, or no label can be expressed in the vocabulary.
    """
    owners: dict[tuple[int, ...], list[int]] = {}  # token ids of a prompt -> labels that asked for it
    texts: dict[tuple[int, ...], str] = {}
    structural = _structural_ids(tokenizer)
    unknown: int = tokenizer.unk_token_id
    spelled = _tokenize_all([text for label in labels for text in label.texts], tokenizer)
    for number, label in enumerate(labels):
        for text in label.texts:
            ids = tuple(token for token in spelled[text] if token not in structural)
            if all(token == unknown for token in ids):
                continue
            if len(ids) + 3 > max_tokens:
                raise PromptError(
                    f"label {label.name!r}: its prompt has {len(ids)} tokens, at most {max_tokens - 3} fit; shorten it"
                )
            asked = owners.setdefault(ids, [])
            if number not in asked:
                asked.append(number)
            texts.setdefault(ids, text)
    expressed = {number for asked in owners.values() for number in asked}
    ignored = tuple(label.name for number, label in enumerate(labels) if number not in expressed)
    _report_ignored(ignored, nothing_left=not owners)

    dot = _dot_id(tokenizer)
    chunks: list[TextChunk] = []
    draft = _Draft(tokenizer.cls_token_id)
    for number, (ids, asked) in enumerate(owners.items()):
        if len(draft.ids) + len(ids) + 2 > max_tokens:
            chunks.append(draft.finish(tokenizer.sep_token_id))
            draft = _Draft(tokenizer.cls_token_id)
        start = len(draft.ids)
        positions = tuple(start + offset for offset, token in enumerate(ids) if token != unknown)
        draft.prompts.append(Prompt(number, positions, tuple(asked)))
        draft.ids += [*ids, dot]
        draft.texts.append(" ".join(texts[ids].split()) + " .")
    chunks.append(draft.finish(tokenizer.sep_token_id))
    return PromptPlan(tuple(labels), tuple(chunks), ignored)


def plan_caption(caption: str, tokenizer: Tokenizer, max_tokens: int = 256) -> PromptPlan:
    """Chunks for a free caption: whole sentences as they stand, with the tokens of each noun phrase marked.

    A phrase that occurs several times ("a cat and another cat") is one label; the best occurrence counts.

    Raises:
        PromptError: a caption without words, a sentence too long, or nothing in it that the vocabulary has.
    """
    phrases = extract_phrases(caption)
    if not phrases:
        raise PromptError(f"there is nothing to look for in the caption {caption!r}")
    numbers: dict[str, int] = {}  # phrase in lower case -> label
    labels: list[Label] = []
    for phrase in phrases:
        if phrase.text.casefold() not in numbers:
            numbers[phrase.text.casefold()] = len(labels)
            labels.append(Label(phrase.text))

    dot, structural = _dot_id(tokenizer), _structural_ids(tokenizer)
    blocks = _delimiter_ids(tokenizer)
    chunks: list[TextChunk] = []
    draft = _Draft(tokenizer.cls_token_id)
    expressed: set[int] = set()
    count = 0
    for start, end in split_sentences(caption):
        inside = [phrase for phrase in phrases if start <= phrase.start and phrase.end <= end]
        ids, owners = _sentence_tokens(caption[start:end], start, inside, structural, blocks, tokenizer)
        if not ids or ids[-1] not in blocks:
            ids.append(dot)
            owners.append(None)
        if len(ids) + 2 > max_tokens:
            raise PromptError(
                f"the sentence {caption[start : start + 40]!r}... has {len(ids)} tokens, at most {max_tokens - 2} fit; "
                "split it with a full stop"
            )
        if len(draft.ids) + len(ids) + 1 > max_tokens:
            chunks.append(draft.finish(tokenizer.sep_token_id))
            draft = _Draft(tokenizer.cls_token_id)
        offset = len(draft.ids)
        for phrase in inside:
            positions = tuple(
                offset + place
                for place, (token, owner) in enumerate(zip(ids, owners, strict=True))
                if owner == phrase and token != tokenizer.unk_token_id
            )
            if positions:
                label = numbers[phrase.text.casefold()]
                expressed.add(label)
                draft.prompts.append(Prompt(count, positions, (label,)))
                count += 1
        draft.ids += ids
        draft.texts.append(caption[start:end])
    chunks.append(draft.finish(tokenizer.sep_token_id))
    ignored = tuple(label.name for number, label in enumerate(labels) if number not in expressed)
    _report_ignored(ignored, nothing_left=not expressed)
    return PromptPlan(tuple(labels), tuple(chunk for chunk in chunks if chunk.prompts), ignored)


def _sentence_tokens(
    sentence: str,
    start: int,
    phrases: Sequence[Phrase],
    structural: frozenset[int],
    blocks: frozenset[int],
    tokenizer: Tokenizer,
) -> tuple[list[int], list[Phrase | None]]:
    """Token ids of a sentence and, for each, the phrase it lies in. Delimiters stay only where the sentence ends."""
    encoded = tokenizer(
        sentence, add_special_tokens=False, padding=False, truncation=False, return_offsets_mapping=True
    )
    ids: list[int] = []
    owners: list[Phrase | None] = []
    pairs = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
    for place, (token, (low, high)) in enumerate(pairs):
        closes = token in blocks and place == len(pairs) - 1
        if token in structural and not closes:
            continue  # the dots of "U.S. flag", a literal "[SEP]"
        ids.append(token)
        inside = [phrase for phrase in phrases if phrase.start <= start + low and start + high <= phrase.end]
        owners.append(inside[0] if inside and not closes else None)
    return ids, owners


@dataclass
class _Draft:
    """A chunk being filled."""

    cls_id: int
    ids: list[int] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids.append(self.cls_id)

    def finish(self, sep_id: int) -> TextChunk:
        return TextChunk(" ".join(self.texts), (*self.ids, sep_id), tuple(self.prompts))


def _tokenize_all(texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, list[int]]:
    unique = list(dict.fromkeys(texts))
    # A shipped tokenizer.json may ask for padding and truncation of its own; neither is wanted here.
    encoded = tokenizer(unique, add_special_tokens=False, padding=False, truncation=False, verbose=False)
    return dict(zip(unique, encoded["input_ids"], strict=True))


def _dot_id(tokenizer: Tokenizer) -> int:
    return int(tokenizer.convert_tokens_to_ids("."))


def _delimiter_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens at which the network ends a block, of those a text may hold."""
    return frozenset(tokenizer.convert_tokens_to_ids([".", "?"]))


def _structural_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that structure the sequence and must not come from inside a prompt."""
    return _delimiter_ids(tokenizer) | (frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def _report_ignored(ignored: Sequence[str], nothing_left: bool) -> None:
    if not ignored:
        return
    names = ", ".join(repr(name) for name in ignored[:5]) + (" and others" if len(ignored) > 5 else "")
    if nothing_left:
        raise PromptError(f"the model's vocabulary has no word for {names}; describe it in English words")
    _log.warning("left out %s: the model's vocabulary has no word for it; describe it in English words", names)
