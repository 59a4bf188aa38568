from __future__ import annotations

import pytest
import torch

from groundingml.models.grounding_dino import ImageFeatures, Proposals, TextFeatures
from groundingml.models.grounding_dino.positions import grid_centres
from groundingml.models.grounding_dino.proposals import (
    TwoStageProposals,
    cell_boxes,
    gather_tokens,
    select_queries,
)


def image_of(shapes: tuple[tuple[int, int], ...], channels: int = 32) -> ImageFeatures:
    tokens = sum(height * width for height, width in shapes)
    ratios = torch.ones(1, len(shapes), 2)
    zeros = torch.zeros(1, tokens, channels)
    return ImageFeatures(zeros, zeros, None, shapes, ratios, grid_centres(shapes, ratios))


def proposals_of(logits: torch.Tensor, scores: torch.Tensor | None = None) -> Proposals:
    nothing = torch.zeros(*logits.shape[:2], 4)
    return Proposals(logits, nothing, nothing, selection_scores=scores)


def test_cell_boxes_by_hand():
    boxes, valid = cell_boxes(image_of(((1, 2), (1, 1))))
    expected = [[0.25, 0.5, 0.05, 0.05], [0.75, 0.5, 0.05, 0.05], [0.5, 0.5, 0.1, 0.1]]
    torch.testing.assert_close(boxes, torch.tensor([expected]))
    assert valid.all()


def test_cells_at_the_very_edge_and_boxes_too_large_are_unusable():
    _, valid = cell_boxes(image_of(((1, 80),)))
    assert valid[0].tolist() == [False] + [True] * 78 + [False]  # centres at 1/160, 3/160, ...
    _, valid = cell_boxes(image_of(((1, 1),) * 6))
    assert valid[0].tolist() == [True] * 5 + [False]  # the sixth is 1.6 wide


def test_unusable_tokens_propose_one_and_the_same(config_of):
    torch.manual_seed(0)
    layer = TwoStageProposals(config_of("mm-grounding-dino"))
    image = image_of(((3, 80),))
    mask = torch.ones(1, 240, dtype=torch.bool)
    mask[:, 100:120] = False
    text_mask = torch.tensor([[True, True, False]])
    text = TextFeatures(
        torch.zeros(1, 3, 32), text_mask, torch.ones(1, 3, 3), torch.zeros(1, 3, 32), torch.zeros(1, 3, 8)
    )
    out = layer(torch.randn(1, 240, 32), mask, image, torch.randn(1, 3, 32), text)
    unusable = ~mask[0]
    unusable[[0, 79, 80, 159, 160, 239]] = True
    assert torch.isposinf(out.boxes_logit[0, unusable]).all()
    assert torch.isfinite(out.boxes_logit[0, ~unusable]).all()
    assert (out.features[0, unusable] - out.features[0, 0]).abs().max() < 1e-6
    assert torch.isneginf(out.logits[..., 2]).all()
    assert torch.isfinite(out.logits[..., :2]).all()


def test_queries_are_the_tokens_that_fit_some_word_best():
    logits = torch.tensor([[[0.0, 1.0], [5.0, -9.0], [2.0, 2.0], [-1.0, -float("inf")]]])
    assert select_queries(proposals_of(logits), 3).tolist() == [[1, 2, 0]]
    assert select_queries(proposals_of(logits), 9).tolist() == [[1, 2, 0, 3]]
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert select_queries(proposals_of(logits, scores), 2).tolist() == [[3, 2]]


@pytest.mark.parametrize("indices", [[[2, 0], [1, 1]], [[], []]])
def test_gather_tokens(indices):
    x = torch.randn(2, 3, 5)
    found = gather_tokens(x, torch.tensor(indices, dtype=torch.long))
    assert found.shape == (2, len(indices[0]), 5)
    for row in range(2):
        assert torch.equal(found[row], x[row][torch.tensor(indices[row], dtype=torch.long)])
