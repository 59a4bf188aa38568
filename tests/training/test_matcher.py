"""The matcher: costs by hand, the assignment by brute force, and transformers' matcher where both define the
same."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from groundingml.training.matcher import HungarianMatcher
from groundingml.training.targets import Target


def make_target(boxes: Tensor, phrase_ids: list[int], phrase_maps: Tensor) -> Target:
    return Target(boxes, torch.tensor(phrase_ids, dtype=torch.int64), phrase_maps, torch.ones(len(boxes)))


def random_problem(
    seed: int, queries: int, boxes: int, columns: int = 8
) -> tuple[Tensor, Tensor, Target, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(queries, columns, generator=generator)
    predicted = 0.1 + 0.5 * torch.rand(queries, 4, generator=generator)
    goal = 0.1 + 0.5 * torch.rand(boxes, 4, generator=generator)
    maps = torch.zeros(3, columns, dtype=torch.bool)
    maps[0, 1:3] = maps[1, 4] = maps[2, 5:7] = True  # two-, one- and two-token phrases
    phrase_ids = torch.randint(0, 3, (boxes,), generator=generator).tolist()
    text_mask = torch.ones(columns, dtype=torch.bool)
    text_mask[-1] = False
    logits[:, -1] = -math.inf
    return logits, predicted, make_target(goal, phrase_ids, maps), text_mask


def test_focal_cost_by_hand() -> None:
    """One query with probability 1/2 on two real tokens; the box's phrase is the first of them.

    positive token: 0.25 * (1/2)^2 * log 2; other token: 0.75 * (1/2)^2 * log 2; together 0.25 * log 2. The
    third column is padding and does not count.
    """
    maps = torch.tensor([[True, False, False]])
    target = make_target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), [0], maps)
    matcher = HungarianMatcher(focal_cost=1.0, l1_cost=0.0, giou_cost=0.0)
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    cost = matcher.cost(
        logits, torch.tensor([[0.1, 0.1, 0.1, 0.1]]), target, torch.tensor([True, True, False])
    )
    assert cost.item() == pytest.approx(0.25 * math.log(2), rel=1e-6)


def test_box_costs_by_hand() -> None:
    """Box of centre 0.5 and side 0.2 against one moved by 0.1 to the right.

    L1: 0.1. Overlap 0.1 x 0.2 = 0.02, union 0.06, hull 0.3 x 0.2 = 0.06: GIoU = 1/3 - 0.
    """
    target = make_target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), [0], torch.tensor([[True]]))
    matcher = HungarianMatcher(focal_cost=0.0, l1_cost=5.0, giou_cost=2.0)
    cost = matcher.cost(torch.zeros(1, 1), torch.tensor([[0.6, 0.5, 0.2, 0.2]]), target, torch.tensor([True]))
    assert cost.item() == pytest.approx(5 * 0.1 - 2 / 3, rel=1e-4)


@pytest.mark.parametrize(("queries", "boxes"), [(5, 3), (4, 4), (2, 4), (3, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_assignment_is_the_best_of_all_permutations(seed: int, queries: int, boxes: int) -> None:
    logits, predicted, target, text_mask = random_problem(seed, queries, boxes)
    matcher = HungarianMatcher()
    cost = matcher.cost(logits, predicted, target, text_mask)
    pairs = min(queries, boxes)
    best = min(
        sum(cost[q, b].item() for q, b in zip(chosen_queries, chosen_boxes, strict=True))
        for chosen_queries in itertools.permutations(range(queries), pairs)
        for chosen_boxes in itertools.combinations(range(boxes), pairs)
    )
    (match,) = matcher(logits[None], predicted[None], [target], text_mask[None])
    assert len(match.queries) == len(set(match.queries.tolist())) == pairs
    assert len(set(match.boxes.tolist())) == pairs
    assert cost[match.queries, match.boxes].sum().item() == pytest.approx(best, abs=1e-5)


def test_images_of_a_batch_are_matched_each_by_itself_and_none_for_an_empty_one() -> None:
    problems = [random_problem(seed, 6, boxes) for seed, boxes in ((1, 3), (2, 0), (3, 2))]
    logits, predicted, targets, masks = zip(*problems, strict=True)
    matcher = HungarianMatcher()
    together = matcher(torch.stack(logits), torch.stack(predicted), list(targets), torch.stack(masks))
    assert len(together[1].queries) == 0
    for i in range(3):
        (alone,) = matcher(logits[i][None], predicted[i][None], [targets[i]], masks[i][None])
        assert alone.queries.equal(together[i].queries)
        assert alone.boxes.equal(together[i].boxes)


def test_outputs_that_are_not_finite_are_said_not_matched() -> None:
    logits, predicted, target, text_mask = random_problem(0, 4, 2)
    predicted[1, 2] = math.nan
    with pytest.raises(FloatingPointError, match="diverged"):
        HungarianMatcher()(logits[None], predicted[None], [target], text_mask[None])


def test_agrees_with_transformers_where_the_definitions_agree() -> None:
    """transformers averages a phrase's tokens and leaves out the tokens that are not the phrase's.

    With phrases of one token, the class costs therefore differ by the query's negative cost summed over all
    tokens: the same for every box. With as many queries as boxes every query is used, so these constants
    cannot change the assignment, and both matchers must return the same.
    """
    reference = pytest.importorskip("transformers.loss.loss_grounding_dino")
    maps = torch.eye(4, dtype=torch.bool)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(3, 4, generator=generator)
        predicted = 0.1 + 0.5 * torch.rand(3, 4, generator=generator)
        goal = 0.1 + 0.5 * torch.rand(3, 4, generator=generator)
        target = make_target(goal, [0, 2, 3], maps)
        matcher = reference.GroundingDinoHungarianMatcher(class_cost=2.0, bbox_cost=5.0, giou_cost=2.0)
        (theirs,) = matcher(
            {"logits": logits[None], "pred_boxes": predicted[None], "label_maps": (maps.float(),)},
            [{"class_labels": target.phrase_ids, "boxes": goal}],
        )
        (mine,) = HungarianMatcher()(
            logits[None], predicted[None], [target], torch.ones(1, 4, dtype=torch.bool)
        )
        assert mine.queries.equal(theirs[0])
        assert mine.boxes.equal(theirs[1])


def test_box_only_costs_agree_with_transformers_for_any_number_of_queries() -> None:
    reference = pytest.importorskip("transformers.loss.loss_grounding_dino")
    logits, predicted, target, text_mask = random_problem(11, 9, 4)
    matcher = reference.GroundingDinoHungarianMatcher(class_cost=0.0, bbox_cost=5.0, giou_cost=2.0)
    (theirs,) = matcher(
        {
            "logits": torch.zeros(1, 9, 8),
            "pred_boxes": predicted[None],
            "label_maps": (target.phrase_maps.float(),),
        },
        [{"class_labels": target.phrase_ids, "boxes": target.boxes_cxcywh}],
    )
    (mine,) = HungarianMatcher(focal_cost=0.0)(logits[None], predicted[None], [target], text_mask[None])
    assert mine.queries.equal(theirs[0])
    assert mine.boxes.equal(theirs[1])
