from __future__ import annotations

import pytest
import torch

from groundingml.inference.prompts import Prompt, TextChunk
from groundingml.inference.scoring import Candidates, prompt_scores, select_candidates


def chunk(*prompts: tuple[tuple[int, ...], tuple[int, ...]]) -> TextChunk:
    """Prompts as (positions, label ids)."""
    made = tuple(Prompt(10 + number, positions, labels) for number, (positions, labels) in enumerate(prompts))
    return TextChunk("", tuple(range(8)), made)


def logits(rows: list[list[float]]) -> torch.Tensor:
    """Probabilities -> logits, with -inf past the text as the network pads."""
    tokens = torch.logit(torch.tensor(rows))
    return torch.cat([tokens, torch.full((len(rows), 4), -torch.inf)], dim=1)


PROBABILITIES = [[0.9, 0.1, 0.2, 0.6, 0.4], [0.9, 0.5, 0.3, 0.1, 0.1]]


@pytest.mark.parametrize(
    ("aggregation", "expected"), [("max", [[0.2, 0.6], [0.5, 0.1]]), ("mean", [[0.15, 0.6], [0.4, 0.1]])]
)
def test_a_score_comes_from_its_own_tokens_alone(aggregation: str, expected: list[list[float]]) -> None:
    # Position 0 ([CLS]) and 4 (a delimiter) belong to no prompt, however high they score.
    scores = prompt_scores(logits(PROBABILITIES), chunk(((1, 2), (0,)), ((3,), (1,))), aggregation)  # type: ignore[arg-type]
    assert torch.allclose(scores, torch.tensor(expected), atol=1e-6)


def pairs(found: Candidates) -> set[tuple[float, int, int]]:
    """(score, label, prompt number)"""
    rows = zip(found.scores.tolist(), found.label_ids.tolist(), found.prompt_numbers.tolist(), strict=True)
    return {(round(score, 4), label, number) for score, label, number in rows}


BOXES = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1]])


@pytest.mark.parametrize(
    ("prompts", "thresholds", "expected", "why"),
    [
        ([((1, 2), (0,)), ((3,), (1,))], [0.3, 0.3], {(0.6, 1, 11), (0.5, 0, 10)}, "one threshold"),
        ([((1, 2), (0,)), ((3,), (1,))], [0.1, 0.7], {(0.2, 0, 10), (0.5, 0, 10)}, "one for each label"),
        (
            [((1, 2), (0,)), ((3,), (1,))],
            [0.1, 0.1],
            {(0.2, 0, 10), (0.5, 0, 10), (0.6, 1, 11), (0.1, 1, 11)},
            "a query may carry several labels; the threshold itself passes",
        ),
        ([((1, 2), (0,)), ((3,), (0,))], [0.3], {(0.6, 0, 11), (0.5, 0, 10)}, "the best alias of each query"),
        (
            [((3,), (0, 1))],
            [0.5, 0.5],
            {(0.6, 0, 10), (0.6, 1, 10)},
            "a prompt of two labels scores for both",
        ),
        ([((1, 2), (0,))], [0.95], set(), "nothing passes"),
    ],
)
def test_candidates(
    prompts: list[tuple[tuple[int, ...], tuple[int, ...]]],
    thresholds: list[float],
    expected: set[tuple[float, int, int]],
    why: str,
) -> None:
    limits = torch.tensor(thresholds) - 1e-6
    found = select_candidates(logits(PROBABILITIES), BOXES, chunk(*prompts), limits, "max", 300)
    assert pairs(found) == expected, why


def test_boxes_follow_their_queries_and_the_best_are_kept() -> None:
    prompts = chunk(((1, 2), (0,)), ((3,), (1,)))
    found = select_candidates(logits(PROBABILITIES), BOXES, prompts, torch.zeros(2), "max", 2)
    assert pairs(found) == {(0.6, 1, 11), (0.5, 0, 10)}
    by_score = found.boxes_cxcywh[found.scores.argsort(descending=True)]
    assert torch.equal(by_score, BOXES)


def test_broken_scores_pass_no_threshold() -> None:
    found = select_candidates(
        torch.full((2, 9), torch.nan), BOXES, chunk(((1,), (0,))), torch.zeros(1), "max", 300
    )
    assert len(found.scores) == 0
