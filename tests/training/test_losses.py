"""Losses against numbers worked out by hand, and what each of them must not depend on."""

import math

import pytest
import torch
from torch import Tensor

from groundingml.models.grounding_dino import TrainingOutput
from groundingml.training.denoising import DenoisingConfig, make_denoising
from groundingml.training.losses import LossConfig, grounding_losses, layer_losses, sigmoid_focal_loss
from groundingml.training.matcher import Match
from groundingml.training.targets import Target

LOG2 = math.log(2)


def one_box_target(weight: float = 1.0, tokens: tuple[int, ...] = (0,), columns: int = 3) -> Target:
    """One box of side 0.2 in the middle, named by the given tokens."""
    maps = torch.zeros(1, columns, dtype=torch.bool)
    maps[0, list(tokens)] = True
    return Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([0]), maps, torch.tensor([weight]))


def no_box_target(columns: int = 3) -> Target:
    return Target(
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        torch.ones(1, columns, dtype=torch.bool),
        torch.zeros(0),
    )


def match(queries: list[int], boxes: list[int]) -> Match:
    return Match(torch.tensor(queries, dtype=torch.int64), torch.tensor(boxes, dtype=torch.int64))


@pytest.mark.parametrize(
    ("logit", "positive", "expected"),
    [
        # p = 1/2: alpha * (1/2)^2 * log 2
        pytest.param(0.0, 1.0, 0.25 * 0.25 * LOG2, id="undecided positive"),
        pytest.param(0.0, 0.0, 0.75 * 0.25 * LOG2, id="undecided negative"),
        # logit log 3, p = 3/4: 0.25 * (1/4)^2 * log(4/3)
        pytest.param(math.log(3), 1.0, 0.25 / 16 * math.log(4 / 3), id="confident and right"),
        # and wrong: 0.75 * (3/4)^2 * log 4
        pytest.param(math.log(3), 0.0, 0.75 * 9 / 16 * math.log(4), id="confident and wrong"),
    ],
)
def test_focal_loss_by_hand(logit: float, positive: float, expected: float) -> None:
    loss = sigmoid_focal_loss(torch.tensor([logit]), torch.tensor([positive]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_one_layer_by_hand() -> None:
    """Two queries, three columns of which the last is padding; query 1 answers the box, moved by 0.1 to the
    right.

    Focal: all logits 0. Query 0 pays twice 0.75/4 log 2, query 1 0.25/4 log 2 + 0.75/4 log 2; sum 0.625 log
    2, one positive. L1: 0.1, times 5. GIoU: overlap 0.02, union and hull 0.06, so 1 - 1/3, times 2.
    """
    logits = torch.tensor([[[0.0, 0.0, -math.inf], [0.0, 0.0, -math.inf]]])
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.6, 0.5, 0.2, 0.2]]])
    mask = torch.tensor([[True, True, False]])
    losses = layer_losses(logits, boxes, [one_box_target()], [match([1], [0])], mask, LossConfig())
    assert losses["focal"].item() == pytest.approx(0.625 * LOG2, rel=1e-5)
    assert losses["l1"].item() == pytest.approx(5 * 0.1, rel=1e-4)
    assert losses["giou"].item() == pytest.approx(2 * (1 - 1 / 3), rel=1e-4)


def test_all_losses_are_divided_by_the_positives_of_the_batch() -> None:
    """The same image twice: sums double, and so do the positives."""
    logits, boxes = torch.zeros(2, 2, 3), torch.full((2, 2, 4), 0.4)
    mask = torch.ones(2, 3, dtype=torch.bool)
    target, found = one_box_target(), match([0], [0])
    one = layer_losses(logits[:1], boxes[:1], [target], [found], mask[:1], LossConfig())
    two = layer_losses(logits, boxes, [target, target], [found, found], mask, LossConfig())
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def test_images_without_boxes_pay_for_false_alarms_only() -> None:
    logits, boxes = torch.zeros(1, 2, 3, requires_grad=True), torch.full((1, 2, 4), 0.4, requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    losses = layer_losses(logits, boxes, [no_box_target()], [match([], [])], mask, LossConfig())
    assert losses["focal"].item() == pytest.approx(2 * 3 * 0.75 * 0.25 * LOG2, rel=1e-5)
    assert losses["l1"].item() == losses["giou"].item() == 0
    torch.stack(list(losses.values())).sum().backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


def test_padding_columns_give_neither_loss_nor_nan_gradients() -> None:
    logits = torch.zeros(1, 1, 3)
    logits[..., 2] = -math.inf
    logits.requires_grad_()
    mask = torch.tensor([[True, True, False]])
    losses = layer_losses(
        logits, torch.full((1, 1, 4), 0.4), [one_box_target()], [match([0], [0])], mask, LossConfig()
    )
    losses["focal"].backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0].tolist()[2] == 0
    assert logits.grad[0, 0, 0] < 0 < logits.grad[0, 0, 1]  # the positive token is pulled up, the other down


def test_every_token_of_a_phrase_is_fully_positive() -> None:
    target = one_box_target(tokens=(0, 1))
    losses = layer_losses(
        torch.zeros(1, 1, 3), torch.full((1, 1, 4), 0.4), [target], [match([0], [0])],
        torch.ones(1, 3, dtype=torch.bool), LossConfig(),
    )  # fmt: skip
    assert losses["focal"].item() == pytest.approx((2 * 0.25 + 0.75) * 0.25 * LOG2, rel=1e-5)


def test_the_weight_of_a_box_scales_what_its_query_pays_and_nothing_else() -> None:
    """Half a weight halves L1 and GIoU, and the focal loss of the matched query (3 tokens: 1 positive), not
    of the other."""
    logits, boxes = torch.zeros(1, 2, 3), torch.full((1, 2, 4), 0.4)
    mask = torch.ones(1, 3, dtype=torch.bool)
    full, half = (
        layer_losses(logits, boxes, [one_box_target(weight)], [match([0], [0])], mask, LossConfig())
        for weight in (1.0, 0.5)
    )
    assert half["l1"].item() == pytest.approx(full["l1"].item() / 2)
    assert half["giou"].item() == pytest.approx(full["giou"].item() / 2)
    matched, other = (0.25 + 2 * 0.75) * 0.25 * LOG2, 3 * 0.75 * 0.25 * LOG2
    assert full["focal"].item() == pytest.approx(matched + other, rel=1e-5)
    assert half["focal"].item() == pytest.approx(matched / 2 + other, rel=1e-5)


def random_output(layers: int, queries: int, denoising: int, columns: int, seed: int = 0) -> TrainingOutput:
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape: int) -> Tensor:
        values = torch.randn(*shape, 256, generator=generator)
        values[..., columns:] = -math.inf
        return values.requires_grad_()

    def boxes(*shape: int) -> Tensor:
        return (0.1 + 0.5 * torch.rand(*shape, 4, generator=generator)).requires_grad_()

    return TrainingOutput(
        decoder_logits=logits(layers, 2, denoising + queries),
        decoder_boxes_cxcywh=boxes(layers, 2, denoising + queries),
        encoder_logits=logits(2, queries),
        encoder_boxes_cxcywh=boxes(2, queries),
        topk_indices=torch.zeros(2, queries, dtype=torch.int64),
    )


def wide_target(boxes: int) -> Target:
    maps = torch.zeros(2, 256, dtype=torch.bool)
    maps[0, 1:3] = maps[1, 4] = True
    generator = torch.Generator().manual_seed(boxes)
    return Target(
        0.1 + 0.5 * torch.rand(boxes, 4, generator=generator),
        torch.arange(boxes) % 2,
        maps,
        torch.ones(boxes),
    )


def test_every_decoder_layer_the_encoder_and_the_denoising_queries_have_losses_and_gradients() -> None:
    targets = [wide_target(2), wide_target(1)]
    plan = make_denoising(
        targets, torch.randn(2, 6, 8), 5, DenoisingConfig(queries=4), [torch.Generator(), torch.Generator()]
    )
    assert plan is not None
    extra = plan.queries_per_image
    output = random_output(layers=3, queries=5, denoising=extra, columns=6)
    mask = torch.ones(2, 6, dtype=torch.bool)
    losses = grounding_losses(output, targets, mask, plan)
    places = [f"{kind}_{layer}" for kind in ("decoder", "denoising") for layer in range(3)] + ["encoder"]
    assert set(losses) == {f"{place}.{name}" for place in places for name in ("focal", "l1", "giou")}

    torch.stack(list(losses.values())).sum().backward()
    for tensor in (output.decoder_logits, output.encoder_logits):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert (tensor.grad[..., 6:] == 0).all()
        assert (tensor.grad[..., :6] != 0).all()  # every query has a class target, denoising ones too
    assert output.decoder_boxes_cxcywh.grad is not None
    touched = (output.decoder_boxes_cxcywh.grad != 0).any(dim=-1).sum(dim=-1)  # (layers, images)
    # matched: as many queries as boxes; denoising: 2 groups (4 // 2), one positive for each box
    assert touched.tolist() == [[2 + 2 * 2, 1 + 2 * 1]] * 3


def test_losses_do_not_depend_on_the_padding_of_the_text() -> None:
    targets = [wide_target(2), wide_target(1)]
    output = random_output(layers=1, queries=5, denoising=0, columns=6)
    short = grounding_losses(output, targets, torch.ones(2, 6, dtype=torch.bool))
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[:, :6] = True
    padded = grounding_losses(output, targets, mask)
    for name in short:
        torch.testing.assert_close(short[name], padded[name])


def test_each_term_agrees_with_transformers_given_the_same_assignment() -> None:
    """The definitions agree but for the weight of the class loss, 2 there and 1 as published; here all
    weights are 1."""
    reference = pytest.importorskip("transformers.loss.loss_grounding_dino")
    targets = [wide_target(2), wide_target(3)]
    output = random_output(layers=1, queries=6, denoising=0, columns=6)
    matches = [match([4, 1], [0, 1]), match([0, 5, 2], [2, 0, 1])]
    logits, boxes = output.decoder_logits[0], output.decoder_boxes_cxcywh[0]
    mask = torch.zeros(2, 256, dtype=torch.bool)
    mask[:, :6] = True
    mine = layer_losses(logits, boxes, targets, matches, mask, LossConfig(focal=1.0, l1=1.0, giou=1.0))

    image_loss = reference.GroundingDinoImageLoss(matcher=None, focal_alpha=0.25, losses=[])
    indices = [(m.queries, m.boxes) for m in matches]
    labels = [{"boxes": t.boxes_cxcywh, "class_labels": t.phrase_ids} for t in targets]
    theirs = image_loss.loss_boxes({"pred_boxes": boxes}, labels, indices, num_boxes=5)
    torch.testing.assert_close(mine["l1"], theirs["loss_bbox"])
    torch.testing.assert_close(mine["giou"], theirs["loss_giou"], atol=1e-5, rtol=1e-5)

    outputs = {
        "logits": logits,
        "text_mask": mask[:, None].expand(logits.shape),
        "label_maps": tuple(t.phrase_maps.float() for t in targets),
    }
    theirs = image_loss.loss_labels(outputs, labels, indices, num_boxes=5)
    torch.testing.assert_close(mine["focal"], theirs["loss_ce"])
