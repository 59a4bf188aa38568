"""Labels or a caption -> the token sequences that the network reads, and which tokens belong to which label.

Everything is decided on token ids, so that a label's score is taken from exactly its own tokens:

* Each prompt becomes one block, ``[CLS] cat . remote control . [SEP]``; the network lets tokens attend
  inside their block only. Delimiters inside a prompt would split it, so the ``.`` and ``?`` of "U.S. flag"
  or "who?" are left out. Commas, slashes, hyphens and apostrophes are ordinary tokens and stay.
* Case does not matter (the BERT vocabulary is uncased, accents are stripped). A prompt asked for by two
  labels is put in once and scores for both.
* Words outside the vocabulary are spelled in pieces ("перчатки": eight of them), which the network can read
  but has hardly been trained on. Characters that it lacks altogether (emoji, many Chinese characters) become
  ``[UNK]``; these carry no meaning and never count towards a score. A label of nothing but ``[UNK]`` cannot
  be looked for: it is left out with a warning, and when nothing else remains, with an error.
* As many blocks as fit go into one chunk of 256 tokens; the next chunk takes the rest. A prompt is never
  split: one that is too long alone is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeAlias

from groundingml.inference.labels import Label
from groundingml.inference.phrases import Phrase, extract_phrases, split_sentences

Tokenizer: TypeAlias = Any  # transformers.PreTrainedTokenizerFast with BERT's vocabulary

_log = logging.getLogger(__name__)


class PromptError(ValueError):
    """What was asked for cannot be put to the network."""


@dataclass(frozen=True)
class Prompt:
    """One block of a chunk: the positions of its meaningful tokens, and the labels (by number) it scores
    for."""

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
    # Labels at the end that were not asked for but are looked for, to drop boxes of those asked for: the
    # number of each -> the numbers of the labels whose negative prompt it is.
    negatives: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def asked(self) -> tuple[Label, ...]:
        """The labels without the negative ones."""
        return self.labels[: len(self.labels) - len(self.negatives)]


class PromptPlanner:
    """Turns what is asked for into token sequences.

    Args:
        tokenizer: a fast tokenizer with BERT's uncased vocabulary (``groundingml.models.load_tokenizer``).
        max_tokens: most tokens of a chunk, [CLS] and [SEP] included.
        delimiter_ids: tokens at which the network ends a block (``config.delimiter_token_ids``). None at all
            mean that it reads a chunk as one caption: then a "." only separates labels and none ends them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_tokens: int = 256,
        delimiter_ids: Sequence[int] = (101, 102, 1012, 1029),
    ) -> None:
        special = frozenset(tokenizer.all_special_ids)
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._unknown: int = tokenizer.unk_token_id
        self._dot: int = tokenizer.convert_tokens_to_ids(".")
        self._closing = frozenset(delimiter_ids) - special  # "." and "?"
        self._has_blocks = bool(delimiter_ids)
        # What structures the sequence and must not come from inside a prompt.
        self._structural = (frozenset(delimiter_ids) | special) - {self._unknown}
        self._borrowed = Lock()  # a fast tokenizer may not be used by two threads at once

    def plan_labels(self, labels: Sequence[Label]) -> PromptPlan:
        """Chunks for a list of labels (see :func:`groundingml.inference.labels.normalise_labels`), their
        negative prompts included.

        Raises:
            PromptError: a prompt is too long, or no label can be expressed in the vocabulary.
        """
        negatives: dict[str, list[int]] = {}
        for number, label in enumerate(labels):
            for text in dict.fromkeys(label.negative_prompts):
                negatives.setdefault(text, []).append(number)
        suppressed = {len(labels) + place: tuple(numbers) for place, numbers in enumerate(negatives.values())}
        labels = (*labels, *(Label(text) for text in negatives))
        owners: dict[tuple[int, ...], list[int]] = {}  # token ids of a prompt -> labels that asked for it
        texts: dict[tuple[int, ...], str] = {}
        spelled = self._tokenize_all([text for label in labels for text in label.texts])
        for number, label in enumerate(labels):
            for text in label.texts:
                ids = spelled[text]
                if all(token == self._unknown for token in ids):
                    continue
                if len(ids) + 3 > self._max_tokens:
                    raise PromptError(
                        f"label {label.name!r}: its prompt has {len(ids)} tokens, "
                        f"at most {self._max_tokens - 3} fit; shorten it"
                    )
                asked = owners.setdefault(ids, [])
                if number not in asked:
                    asked.append(number)
                texts.setdefault(ids, text)
        expressed = {number for asked in owners.values() for number in asked}
        ignored = tuple(label.name for number, label in enumerate(labels) if number not in expressed)
        _report_ignored(ignored, nothing_left=not owners)

        chunks: list[TextChunk] = []
        draft = self._new_draft()
        for number, (ids, asked) in enumerate(owners.items()):
            if len(draft.ids) + len(ids) + 2 > self._max_tokens:
                chunks.append(self._finish(draft))
                draft = self._new_draft()
            if draft.prompts and not self._has_blocks:
                draft.ids.append(self._dot)
            start = len(draft.ids)
            positions = tuple(start + offset for offset, token in enumerate(ids) if token != self._unknown)
            draft.prompts.append(Prompt(number, positions, tuple(asked)))
            draft.ids += [*ids, self._dot] if self._has_blocks else ids
            draft.texts.append(" ".join(texts[ids].split()) + " .")
        chunks.append(self._finish(draft))
        return PromptPlan(tuple(labels), tuple(chunks), ignored, suppressed)

    def plan_phrases(self, caption: str) -> PromptPlan:
        """Chunks for a free caption with each of its noun phrases as a block of its own.

        For networks that score a block as a whole, and would give all phrases of a sentence the same score.

        Raises:
            PromptError: as `plan_caption`.
        """
        return self.plan_labels([label for _, label in _phrase_labels(caption, extract_phrases(caption))])

    def plan_caption(self, caption: str) -> PromptPlan:
        """Chunks for a free caption: whole sentences as they stand, with the tokens of each noun phrase
        marked.

        A phrase that occurs several times ("a cat and another cat") is one label; the best occurrence counts.

        Raises:
            PromptError: a caption without words, a sentence too long, or nothing in it that the vocabulary
                has.
        """
        phrases = extract_phrases(caption)
        united = _phrase_labels(caption, phrases)
        numbers = {key: number for number, (key, _) in enumerate(united)}
        plan_labels = tuple(label for _, label in united)

        chunks: list[TextChunk] = []
        draft = self._new_draft()
        count = 0
        for start, end in split_sentences(caption):
            inside = [phrase for phrase in phrases if start <= phrase.start and phrase.end <= end]
            ids, owners = self._sentence_tokens(caption[start:end], start, inside)
            if len(ids) + 2 > self._max_tokens:
                raise PromptError(
                    f"the sentence {caption[start : start + 40]!r}... has {len(ids)} tokens, "
                    f"at most {self._max_tokens - 2} fit; split it with a full stop"
                )
            if len(draft.ids) + len(ids) + 1 > self._max_tokens:
                chunks.append(self._finish(draft))
                draft = self._new_draft()
            offset = len(draft.ids)
            for phrase in inside:
                positions = tuple(offset + place for place, owner in enumerate(owners) if owner == phrase)
                if positions:
                    draft.prompts.append(Prompt(count, positions, (numbers[phrase.text.casefold()],)))
                    count += 1
            draft.ids += ids
            draft.texts.append(caption[start:end])
        chunks.append(self._finish(draft))
        kept = tuple(chunk for chunk in chunks if chunk.prompts)
        expressed = {label for chunk in kept for prompt in chunk.prompts for label in prompt.label_ids}
        ignored = tuple(label.name for number, label in enumerate(plan_labels) if number not in expressed)
        _report_ignored(ignored, nothing_left=not expressed)
        return PromptPlan(plan_labels, kept, ignored)

    def _sentence_tokens(
        self, sentence: str, start: int, phrases: Sequence[Phrase]
    ) -> tuple[list[int], list[Phrase | None]]:
        """Token ids of a sentence, ended by a delimiter; for each the phrase that it is a meaningful part
        of."""
        with self._borrowed:
            encoded = self._tokenizer(
                sentence,
                add_special_tokens=False,
                padding=False,
                truncation=False,
                return_offsets_mapping=True,
                verbose=False,
            )
        ids: list[int] = []
        owners: list[Phrase | None] = []
        last = len(encoded["input_ids"]) - 1
        for place, token in enumerate(encoded["input_ids"]):
            closes = token in self._closing and place == last
            if token in self._structural and not closes:
                continue  # the dots of "U.S. flag", a literal "[SEP]"
            low, high = (start + offset for offset in encoded["offset_mapping"][place])
            owner = next((phrase for phrase in phrases if phrase.start <= low and high <= phrase.end), None)
            ids.append(token)
            owners.append(None if closes or token == self._unknown else owner)
        if self._has_blocks and (not ids or ids[-1] not in self._closing):
            ids.append(self._dot)
            owners.append(None)
        return ids, owners

    def _tokenize_all(self, texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
        unique = list(dict.fromkeys(texts))
        with self._borrowed:
            # A shipped tokenizer.json may ask for padding and truncation of its own; neither is wanted here.
            encoded = self._tokenizer(
                unique, add_special_tokens=False, padding=False, truncation=False, verbose=False
            )
        return {
            text: tuple(token for token in ids if token not in self._structural)
            for text, ids in zip(unique, encoded["input_ids"], strict=True)
        }

    def _new_draft(self) -> _Draft:
        return _Draft(ids=[self._tokenizer.cls_token_id])

    def _finish(self, draft: _Draft) -> TextChunk:
        return TextChunk(
            " ".join(draft.texts), (*draft.ids, self._tokenizer.sep_token_id), tuple(draft.prompts)
        )


@dataclass
class _Draft:
    """A chunk being filled."""

    ids: list[int]
    prompts: list[Prompt] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def _phrase_labels(caption: str, phrases: Sequence[Phrase]) -> list[tuple[str, Label]]:
    """(phrase in lower case, label as first written), each once, in order."""
    united: dict[str, Label] = {}
    for phrase in phrases:
        united.setdefault(phrase.text.casefold(), Label(phrase.text))
    if not united:
        raise PromptError(f"there is nothing to look for in the caption {caption!r}; name what to find")
    return list(united.items())


def _report_ignored(ignored: Sequence[str], nothing_left: bool) -> None:
    if not ignored:
        return
    names = ", ".join(repr(name) for name in ignored[:5]) + (" and others" if len(ignored) > 5 else "")
    if nothing_left:
        raise PromptError(f"the model's vocabulary has no word for {names}; describe it in English words")
    _log.warning(
        "left out %s: the model's vocabulary has no word for it; describe it in English words", names
    )
