"""Denoising queries: how many, how noisy, and who may see whom."""

import pytest
import torch
from torch import Tensor

from groundingml.training.boxes import cxcywh_to_xyxy, inverse_sigmoid
from groundingml.training.denoising import DenoisingConfig, DenoisingPlan, make_denoising
from groundingml.training.targets import Target

MATCHING = 7


def make_target(boxes: list[list[float]], phrase_ids: list[int] | None = None) -> Target:
    """Phrases: tokens 1-2, token 4, tokens 6-8."""
    maps = torch.zeros(3, 256, dtype=torch.bool)
    maps[0, 1:3] = maps[1, 4] = maps[2, 6:9] = True
    count = len(boxes)
    ids = torch.tensor(
        phrase_ids if phrase_ids is not None else [i % 3 for i in range(count)], dtype=torch.int64
    )
    return Target(torch.tensor(boxes).reshape(-1, 4), ids, maps, torch.ones(count))


def build(
    targets: list[Target], config: DenoisingConfig, seed: int = 0, features: Tensor | None = None
) -> DenoisingPlan:
    if features is None:
        features = torch.randn(len(targets), 10, 8, generator=torch.Generator().manual_seed(99))
    plan = make_denoising(
        targets,
        features,
        MATCHING,
        config,
        [torch.Generator().manual_seed(seed + 7 * i) for i in range(len(targets))],
    )
    assert plan is not None
    return plan


TWO_AND_ONE = [[[0.5, 0.5, 0.2, 0.4], [0.3, 0.4, 0.1, 0.1]], [[0.6, 0.5, 0.3, 0.2]]]


def test_groups_follow_from_the_largest_image() -> None:
    """100 queries, at most 2 boxes: 50 groups of (2 positives, 2 negatives), 200 queries in all."""
    plan = build([make_target(boxes) for boxes in TWO_AND_ONE], DenoisingConfig())
    assert plan.groups == 50
    assert plan.queries.content.shape == (2, 200, 8)
    assert plan.queries.reference_logits.shape == (2, 200, 4)
    assert plan.queries.self_attention_mask.shape == (200 + MATCHING, 200 + MATCHING)


def test_more_boxes_than_queries_still_make_one_group() -> None:
    plan = build([make_target([[0.5, 0.5, 0.1, 0.1]] * 30)], DenoisingConfig(queries=10))
    assert plan.groups == 1
    assert plan.queries_per_image == 60


def test_no_boxes_in_the_batch_means_no_denoising() -> None:
    features = torch.randn(1, 10, 8)
    assert (
        make_denoising([make_target([])], features, MATCHING, DenoisingConfig(), [torch.Generator()]) is None
    )


def test_positives_answer_their_boxes() -> None:
    """Groups of 2 positives and 2 negatives: slots 0 1 | 2 3, then 4 5 | 6 7; the second image uses only the
    first of each."""
    plan = build([make_target(boxes) for boxes in TWO_AND_ONE], DenoisingConfig(queries=4))
    assert plan.groups == 2
    assert plan.matches[0].queries.tolist() == [0, 1, 4, 5]
    assert plan.matches[0].boxes.tolist() == [0, 1, 0, 1]
    assert plan.matches[1].queries.tolist() == [0, 4]
    assert plan.matches[1].boxes.tolist() == [0, 0]
    # Padding has no content and stands in the middle of the image.
    for padding in (1, 3, 5, 7):
        assert (plan.queries.content[1, padding] == 0).all()
        assert plan.queries.reference_logits[1, padding].sigmoid().tolist() == [0.5] * 4


def test_corners_of_positives_move_less_than_half_a_side_and_those_of_negatives_more() -> None:
    """Box noise 1.0: positives move by less than 0.5 sides, negatives by 0.5 to 1.0."""
    box = [0.5, 0.5, 0.2, 0.1]
    plan = build([make_target([box])], DenoisingConfig(queries=500, box_noise=1.0, label_noise=0.0))
    noisy = plan.queries.reference_logits[0].sigmoid().reshape(500, 2, 4)
    # Where a corner passed its opposite, the width is clipped by the inverse sigmoid and cannot be undone:
    # leave these out.
    whole = (noisy[:, :, 2:] > 0.002).all(dim=-1)
    sides = torch.tensor([0.2, 0.1, 0.2, 0.1])
    moved = (cxcywh_to_xyxy(noisy) - cxcywh_to_xyxy(torch.tensor(box))).abs() / sides
    positives, negatives = moved[:, 0][whole[:, 0]], moved[:, 1][whole[:, 1]]
    assert len(positives) > 400
    assert len(negatives) > 100
    assert positives.max() < 0.5 + 1e-4
    assert negatives.min() > 0.5 - 1e-4
    assert negatives.max() < 1.0 + 1e-4
    assert positives.max() > 0.45  # the whole range is used
    assert positives.min() < 0.05


def test_boxes_stay_inside_the_image_and_finite() -> None:
    plan = build([make_target([[0.5, 0.5, 1.0, 1.0], [0.01, 0.99, 0.02, 0.02]])], DenoisingConfig())
    assert torch.isfinite(plan.queries.reference_logits).all()
    limit = inverse_sigmoid(torch.tensor(0.0)).abs() + 1e-5
    assert plan.queries.reference_logits.abs().max() <= limit


def test_without_noise_queries_are_the_boxes_and_phrases_themselves() -> None:
    target = make_target([[0.5, 0.5, 0.2, 0.4]], [2])
    features = torch.randn(1, 10, 8)
    plan = build([target], DenoisingConfig(queries=1, label_noise=0.0, box_noise=0.0), features=features)
    torch.testing.assert_close(plan.queries.reference_logits[0].sigmoid(), target.boxes_cxcywh.expand(2, 4))
    mean = features[0, 6:9].mean(dim=0)
    expected = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(plan.queries.content[0, 0], expected)


def test_half_of_label_noise_is_the_share_of_replaced_phrases() -> None:
    """Noise 1.0: half of the queries draw one of 3 phrases, of which a third is the true one: 1/3 of all are
    wrong."""
    features = torch.randn(1, 10, 8)
    target = make_target([[0.5, 0.5, 0.2, 0.2]], [1])
    clean = build([target], DenoisingConfig(queries=1, label_noise=0.0), features=features).queries.content[
        0, 0
    ]
    content = build(
        [target], DenoisingConfig(queries=3000, label_noise=1.0), features=features
    ).queries.content[0]
    wrong = (content - clean).abs().amax(dim=-1) > 1e-5
    assert wrong.float().mean().item() == pytest.approx(1 / 3, abs=0.03)


def test_attention_mask_by_hand() -> None:
    """Two groups of one positive and one negative, two matching queries. Rows look at columns; 1 is
    forbidden."""
    features = torch.randn(1, 10, 8)
    plan = make_denoising(
        [make_target([[0.5, 0.5, 0.2, 0.2]])], features, 2, DenoisingConfig(queries=2), [torch.Generator()]
    )
    assert plan is not None
    assert plan.queries.self_attention_mask.int().tolist() == [
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
    ]


def test_the_generator_decides_the_noise() -> None:
    targets = [make_target(boxes) for boxes in TWO_AND_ONE]
    first, same, other = (build(targets, DenoisingConfig(), seed) for seed in (3, 3, 4))
    assert first.queries.reference_logits.equal(same.queries.reference_logits)
    assert first.queries.content.equal(same.queries.content)
    assert not first.queries.reference_logits.equal(other.queries.reference_logits)
