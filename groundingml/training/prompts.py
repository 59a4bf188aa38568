"""Prompts to train with: the names in an image plus sampled names that are not, as one chunk of the network's
text.

The text itself is built by ``groundingml.inference.prompts``, so that what is trained is what is served.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from groundingml.inference.labels import Label, normalise_labels
from groundingml.inference.prompts import PromptPlanner, Tokenizer
from groundingml.models.glip.config import GlipConfig
from groundingml.models.grounding_dino.config import GroundingDinoConfig


@dataclass(frozen=True)
class PromptConfig:
    """How many names that an image lacks are asked for beside those it has.

    max_negatives: at most this many (85 in MM-Grounding-DINO). all_negatives: the probability of taking that
    many; else their number is drawn evenly from 1 up, so that short prompts are learned too. max_tokens: of
    one prompt.
    synonyms: name -> prompts, one of which is drawn each time; names without an entry are asked for as they
    are.
    """

    max_negatives: int = 85
    all_negatives: float = 0.5
    max_tokens: int = 256
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingPrompt:
    """One image's prompt.

    input_ids: from [CLS] to [SEP]; phrase_maps: (K, 256) bool, the tokens of each of its K phrases;
    phrases: name -> which phrase asks for it. Names that did not fit are not in ``phrases``.
    """

    input_ids: tuple[int, ...]
    phrase_maps: Tensor
    phrases: dict[str, int]


class PromptSampler:
    """Draws prompts for images. ``ignored`` lists names that the tokenizer's vocabulary cannot express at
    all.

    names: every name that will be asked for; they are checked once, here. Raises PromptError for a name that
    is too long or when none can be expressed.
    """

    def __init__(
        self,
        names: Sequence[str],
        tokenizer: Tokenizer,
        model_config: GroundingDinoConfig | GlipConfig,
        config: PromptConfig,
    ) -> None:
        self.config = config
        self.pad_token_id: int = tokenizer.pad_token_id or 0
        self._columns = model_config.max_text_len
        most = min(config.max_tokens, model_config.max_text_len)
        self._planner = PromptPlanner(tokenizer, most, model_config.delimiter_token_ids)
        labels = normalise_labels([Label(name, tuple(config.synonyms.get(name, ()))) for name in names])
        self.ignored = frozenset(self._planner.plan_labels(labels).ignored)

    def sample(self, present: Sequence[str], absent: Sequence[str], rng: random.Random) -> TrainingPrompt:
        """A shuffled prompt of all ``present`` names and some ``absent`` ones; present ones go first when
        space is short.

        Raises ValueError when there is no name at all.
        """
        positives = [name for name in dict.fromkeys(present) if name not in self.ignored]
        others = [
            name for name in dict.fromkeys(absent) if name not in self.ignored and name not in positives
        ]
        if not positives and not others:
            raise ValueError(
                "an image without boxes needs the names of what it does not show, to be asked for"
            )
        rng.shuffle(positives)
        most = min(self.config.max_negatives, len(others))
        if not positives:
            most = max(most, 1)
        count = most if rng.random() < self.config.all_negatives else rng.randint(min(1, most), most)
        wanted = [self._label(name, rng) for name in positives + rng.sample(others, count)]
        first = self._planner.plan_labels(wanted).chunks[0]
        kept = [wanted[i] for i in sorted({i for prompt in first.prompts for i in prompt.label_ids})]
        rng.shuffle(kept)
        (chunk,) = self._planner.plan_labels(kept).chunks

        maps = torch.zeros(len(chunk.prompts), self._columns, dtype=torch.bool)
        phrases = {}
        for number, prompt in enumerate(chunk.prompts):
            maps[number, list(prompt.positions)] = True
            phrases.update({kept[label].name: number for label in prompt.label_ids})
        return TrainingPrompt(chunk.input_ids, maps, phrases)

    def _label(self, name: str, rng: random.Random) -> Label:
        synonyms = self.config.synonyms.get(name)
        return Label(name, (rng.choice(list(synonyms)),) if synonyms else ())
