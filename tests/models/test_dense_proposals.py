"""Dense proposals: which tokens are words, what a phrase means, which cells count."""

import pytest
import torch
from torch.nn import functional as F

from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.dense_proposals import (
    DenseProposals,
    NameMemory,
    nearly_highest,
    peaks,
    phrase_vectors,
)
from groundingml.models.grounding_dino.text import phrase_blocks

CLS, SEP, DOT = 101, 102, 1012


def test_a_phrase_is_the_mean_of_its_words_and_its_delimiter_is_no_word() -> None:
    input_ids = torch.tensor([[CLS, 7, 8, DOT, 9, DOT, SEP]])
    block_mask, _ = phrase_blocks(input_ids, (CLS, SEP, DOT))
    hidden = torch.randn(1, 7, 5)
    vectors, is_word = phrase_vectors(hidden, block_mask)
    assert is_word.tolist() == [[False, True, True, False, True, False, False]]
    torch.testing.assert_close(vectors[0, 1], F.normalize(hidden[0, 1] + hidden[0, 2], dim=0))
    torch.testing.assert_close(vectors[0, 2], vectors[0, 1])
    torch.testing.assert_close(vectors[0, 4], F.normalize(hidden[0, 4], dim=0))


def test_only_the_highest_of_neighbours_is_a_peak_for_each_phrase_and_level_apart() -> None:
    first = torch.tensor([[1.0, 2.0, 0.0, 5.0], [0.0, 0.0, 0.0, 4.0]])
    other = torch.tensor([[3.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
    second_level = torch.tensor([[0.5]])
    logits = torch.stack(
        [torch.cat([grid.flatten(), second_level.flatten()]) for grid in (first, other)], dim=-1
    )
    found = peaks(logits[None], ((2, 4), (1, 1)))[0]
    assert found[:, 0].nonzero().flatten().tolist() == [1, 3, 8]
    assert found[:, 1].nonzero().flatten().tolist() == [0, 7, 8]


@pytest.fixture
def memory() -> NameMemory:
    """Two classes, of which the first has two names, and something unknown; vectors whose centre is zero."""
    vectors = torch.eye(4)
    memory = NameMemory(4, 4, num_classes=2)
    memory.fill(vectors, torch.tensor([0, 0, 1, 2]))
    memory.centre.zero_()
    memory.names.copy_(vectors)
    return memory


def test_a_known_name_means_its_class_and_no_other(memory: NameMemory) -> None:
    meaning = memory(torch.eye(4)[None])[0]
    assert meaning[0, 0] > 0.99
    assert meaning[1, 0] > 0.99
    assert meaning[2, 1] > 0.99
    assert meaning[:2, 1].max() < 1e-6
    assert meaning[2, 0] < 1e-6


def test_a_phrase_nearer_to_something_unknown_means_nothing(memory: NameMemory) -> None:
    phrase = F.normalize(torch.tensor([0.6, 0.0, 0.0, 0.9]), dim=0)
    assert memory(phrase[None, None]).max() < 0.01


def test_a_phrase_between_two_classes_means_both(memory: NameMemory) -> None:
    phrase = F.normalize(torch.tensor([1.0, 0.0, 1.0, 0.0]), dim=0)
    meaning = memory(phrase[None, None])[0, 0]
    torch.testing.assert_close(meaning[0], meaning[1])
    assert meaning[0] > 0.9


def test_a_phrase_unlike_all_names_means_nothing(memory: NameMemory) -> None:
    phrase = F.normalize(torch.tensor([-1.0, -1.0, -1.0, -1.0]), dim=0)
    assert memory(phrase[None, None]).max() < 1e-3


def test_a_phrase_of_many_classes_scores_as_the_best_of_them() -> None:
    probabilities = torch.tensor([[[0.6, 0.1, 0.1, 0.1], [0.3, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0]]])
    affinities = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.5, 0.0, 0.0, 0.0]]])
    scores = nearly_highest(probabilities, affinities)
    expected = torch.tensor([[0.6, 0.6, 0.3], [0.3, 0.3, 0.15], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(scores[0], expected, atol=0.01, rtol=0)


def test_another_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a NanoDetConfig"):
        DenseProposals(GroundingDinoConfig(proposals="two_stage"))
