"""Training images mixed with others, so that what the model knew is asked for again while it learns."""

from __future__ import annotations

import random

from groundingml.training.dataset import Sample, TrainingSet


class Mixture:
    """An epoch of all images of one set, and enough of another's that these make up ``share`` of it.

    The other's images are taken in turn, epoch by epoch drawn anew from its own random order.
    """

    def __init__(self, main: TrainingSet, other: TrainingSet, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"the share of the replay must lie between 0 and 1, got {share}")
        self.main = main
        self.other = other
        self.names = list(dict.fromkeys((*main.names, *other.names)))
        self._others = max(1, round(len(main) * share / (1 - share)))

    def __len__(self) -> int:
        return len(self.main) + self._others

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Of the first set where the index is one of its; else a random one of the other."""
        if index < len(self.main):
            return self.main.sample(index, rng)
        return self.other.sample(rng.randrange(len(self.other)), rng)
