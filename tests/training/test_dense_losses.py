"""Losses at every cell, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from groundingml.models.grounding_dino.taught_head import DenseOutput
from groundingml.training.dense_losses import (
    DenseLossConfig,
    assign_cells,
    dense_losses,
    pairwise_iou,
    quality_focal_loss,
    side_loss,
    sides,
)

CENTRES = torch.tensor([[x + 4.0, 4.0] for x in range(0, 40, 8)])  # five cells of 8 pixels in a row


def test_overlap_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 8.0, 9.0]])
    found = pairwise_iou(boxes, torch.tensor([[2.0, 0.0, 6.0, 4.0], [0.0, 0.0, 4.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[8 / 24, 0.5], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("logit", "goal", "expected"),
    [
        pytest.param(0.0, 0.5, 0.0, id="as it should be"),
        pytest.param(0.0, 0.0, 0.25 * math.log(2), id="too sure: half, squared, times log 2"),
        # p = 3/4, goal 1/2: distance 1/4; cross-entropy -(log(3/4) + log(1/4)) / 2
        pytest.param(
            math.log(3), 0.5, 1 / 16 * -(math.log(3 / 4) + math.log(1 / 4)) / 2, id="sure, half right"
        ),
    ],
)
def test_quality_focal_loss_by_hand(logit: float, goal: float, expected: float) -> None:
    loss = quality_focal_loss(torch.tensor([logit]), torch.tensor([goal]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_distance_between_two_bins_wants_both_in_proportion() -> None:
    """Four bins, all as probable: log 4 whatever the distance. Sure of bin 1: log of its probability."""
    even = torch.zeros(1, 16)
    assert side_loss(even, torch.tensor([[0.0, 0.5, 1.3, 2.9]])).item() == pytest.approx(math.log(4))
    sure = torch.zeros(1, 4, 4)
    sure[..., 1] = math.log(9)  # probabilities 1/12, 9/12, 1/12, 1/12
    expected = -(0.75 * math.log(9 / 12) + 0.25 * math.log(1 / 12))
    loss = side_loss(sure.flatten(1), torch.full((1, 4), 1.25))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    beyond = side_loss(sure.flatten(1), torch.full((1, 4), 99.0))  # what no bin reaches is the last one
    assert beyond.item() == pytest.approx(-(0.01 * math.log(1 / 12) + 0.99 * math.log(1 / 12)), rel=1e-4)


def test_the_best_cells_inside_a_box_learn_it_and_the_best_of_them_by_its_overlap() -> None:
    """Box 0..24: centres 4, 12 and 20 are inside. Predictions overlap it by 1/2, 3/4 and 1/4."""
    goal = torch.tensor([[0.0, 0.0, 24.0, 8.0]])
    predicted = torch.tensor([[0.0, 0.0, w, 8.0] for w in (12.0, 18.0, 6.0, 24.0, 24.0)])
    scores = torch.full((5, 1), 0.25)
    found = assign_cells(scores, predicted, CENTRES, goal, DenseLossConfig(candidates=2))
    assert found.cells.tolist() == [0, 1]
    assert found.boxes.tolist() == [0, 0]
    # alignment 0.25^0.5 * IoU^4, relative to the best, times the best overlap
    expected = [(1 / 2) ** 4 / (3 / 4) ** 4 * 3 / 4, 3 / 4]
    torch.testing.assert_close(found.goals, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_a_cell_in_two_boxes_learns_the_one_that_it_overlaps_more() -> None:
    goal = torch.tensor([[0.0, 0.0, 24.0, 8.0], [0.0, 0.0, 16.0, 8.0]])
    predicted = torch.tensor([[0.0, 0.0, 15.0, 8.0]] * 5)
    found = assign_cells(torch.full((5, 2), 0.5), predicted, CENTRES, goal, DenseLossConfig())
    assert dict(zip(found.cells.tolist(), found.boxes.tolist(), strict=True)) == {0: 1, 1: 1, 2: 0}


def output(logits: torch.Tensor) -> DenseOutput:
    cells = logits.shape[1]
    boxes = torch.cat([CENTRES - 4, CENTRES + 4], dim=1)[:cells]
    return DenseOutput(
        logits, torch.zeros(1, cells, 16), boxes[None], CENTRES[:cells], torch.full((cells, 1), 8.0)
    )


def losses_of(
    found: DenseOutput,
    goal: torch.Tensor,
    phrase_ids: list[int],
    columns: list[int],
    width: float,
    weight: float = 1,
) -> dict[str, float]:
    losses = dense_losses(
        found, 0, torch.tensor(columns), goal, torch.tensor(phrase_ids, dtype=torch.int64),
        torch.full((len(goal),), float(weight)), torch.tensor([width, 8.0]), DenseLossConfig(),
    )  # fmt: skip
    return {name: value.item() for name, value in losses.items()}


def test_one_image_by_hand() -> None:
    """One cell that fits its box exactly, four that do not, one name: all at probability 1/2.

    The fitting cell's goal is 1: (1/2)^2 log 2, and so pay the four others, whose goal is 0. Its distances
    are half a stride; with 4 even bins each side pays log 4. It fits, so GIoU costs nothing.
    """
    goal = torch.tensor([[8.0, 0.0, 16.0, 8.0]])
    found = losses_of(output(torch.zeros(1, 5, 1)), goal, [0], [0], width=40.0)
    assert found["quality"] == pytest.approx(5 * 0.25 * math.log(2), rel=1e-4)
    assert found["giou"] == pytest.approx(0.0, abs=1e-4)
    assert found["distribution"] == pytest.approx(0.25 * math.log(4), rel=1e-4)


def test_names_that_are_not_asked_for_and_cells_beyond_the_image_do_not_count() -> None:
    """Three names, of which the prompt asks for the second alone; the image ends after two cells."""
    empty = torch.zeros(0, 4)
    found = losses_of(output(torch.zeros(1, 5, 3)), empty, [], [1], width=16.0)
    assert found["quality"] == pytest.approx(2 * 0.25 * math.log(2), rel=1e-4)
    assert found["giou"] == found["distribution"] == 0.0


def test_a_weight_scales_what_is_learned_from_a_box() -> None:
    goal = torch.tensor([[8.0, 0.0, 16.0, 8.0]])
    full, half = (
        losses_of(output(torch.zeros(1, 5, 1)), goal, [0], [0], width=40.0, weight=weight)
        for weight in (1.0, 0.5)
    )
    assert half["distribution"] == pytest.approx(full["distribution"] / 2)
    assert full["quality"] - half["quality"] == pytest.approx(0.5 * 0.25 * math.log(2), rel=1e-4)


def test_distances_to_the_sides() -> None:
    found = sides(torch.tensor([[4.0, 5.0]]), torch.tensor([[1.0, 2.0, 10.0, 9.0]]))
    assert found.tolist() == [[3.0, 3.0, 6.0, 4.0]]
