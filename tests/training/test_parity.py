"""The whole objective and its gradients against the published formulation, worked out in plain Python.

Nothing of the package's is called for the expected numbers: focal loss and costs, L1, generalised IoU, the
best assignment over all permutations and the sums are written here with floats and loops, from MMDetection's
MM-Grounding-DINO (costs 2, 5, 2; weights 1, 5, 2; alpha 0.25, gamma 2). Gradients are central differences of
that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from groundingml.models.grounding_dino import TrainingOutput
from groundingml.models.grounding_dino.outputs import DenoisingQueries
from groundingml.training.denoising import DenoisingPlan
from groundingml.training.losses import grounding_losses
from groundingml.training.matcher import Match
from groundingml.training.targets import Target

TOKENS = 4  # the last of the second image is padding
REAL = [[0, 1, 2, 3], [0, 1, 2]]
BOXES = [[[0.4, 0.5, 0.2, 0.3]], [[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.4]]]
PHRASE_TOKENS = [[0, 1], [2]]  # two phrases: the first of two tokens
PHRASE_OF_BOX = [[1], [0, 1]]

Vector = Sequence[float]


def focal(logit: float, positive: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    if positive:
        return -0.25 * (1 - p) ** 2 * math.log(p)
    return -0.75 * p**2 * math.log(1 - p)


def giou(a: Vector, b: Vector) -> float:
    ax0, ay0, ax1, ay1 = a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2
    bx0, by0, bx1, by1 = b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2
    shared = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - shared
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return shared / union - (hull - union) / hull


def l1(a: Vector, b: Vector) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def token_loss(logits: Vector, positives: Sequence[int], image: int) -> float:
    return sum(focal(logits[token], token in positives) for token in REAL[image])


def positives_of(image: int, box: int) -> list[int]:
    return PHRASE_TOKENS[PHRASE_OF_BOX[image][box]]


def best_assignment(logits: Sequence[Vector], boxes: Sequence[Vector], image: int) -> tuple[int, ...]:
    """Which query answers each box: the least cost of all choices."""

    def cost(query: int, box: int) -> float:
        goal = BOXES[image][box]
        classes = token_loss(logits[query], positives_of(image, box), image)
        return 2 * classes + 5 * l1(boxes[query], goal) - 2 * giou(boxes[query], goal)

    choices = itertools.permutations(range(len(logits)), len(BOXES[image]))
    return min(choices, key=lambda chosen: sum(cost(query, box) for box, query in enumerate(chosen)))


def layer(
    logits: list[list[Vector]], boxes: list[list[Vector]], answers: list[dict[int, int]], positives: int
) -> float:
    """answers: for each image, query -> the box that it answers."""
    total = 0.0
    for image, of_image in enumerate(answers):
        for query, scores in enumerate(logits[image]):
            right = positives_of(image, of_image[query]) if query in of_image else []
            total += token_loss(scores, right, image)
        for query, box in of_image.items():
            goal, found = BOXES[image][box], boxes[image][query]
            total += 5 * l1(found, goal) + 2 * (1 - giou(found, goal))
    return total / positives


def matched(logits: list[list[Vector]], boxes: list[list[Vector]]) -> float:
    answers = []
    for image in range(2):
        chosen = best_assignment(logits[image], boxes[image], image)
        answers.append({query: box for box, query in enumerate(chosen)})
    return layer(logits, boxes, answers, positives=3)


QUERIES, NOISED, LAYERS = 3, 8, 2  # two groups of a positive and a negative of up to two boxes
DENOISED = [{0: 0, 4: 0}, {0: 0, 1: 1, 4: 0, 5: 1}]


def expected(values: list[float]) -> float:
    """The sum of all losses of a flat list: logits and boxes of the decoder's layers, then of the encoder."""
    place = iter(values)

    def take(rows: int, width: int) -> list[list[Vector]]:
        return [[[next(place) for _ in range(width)] for _ in range(rows)] for _ in range(2)]

    total = 0.0
    for _ in range(LAYERS):
        logits, boxes = take(NOISED + QUERIES, TOKENS), take(NOISED + QUERIES, 4)
        total += matched([rows[NOISED:] for rows in logits], [rows[NOISED:] for rows in boxes])
        noised_logits = [rows[:NOISED] for rows in logits]
        total += layer(noised_logits, [rows[:NOISED] for rows in boxes], DENOISED, positives=6)
    return total + matched(take(QUERIES, TOKENS), take(QUERIES, 4))


def random_values(seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    values: list[float] = []
    for rows in [NOISED + QUERIES] * LAYERS + [QUERIES]:
        values += torch.randn(2 * rows * TOKENS, generator=generator, dtype=torch.float64).tolist()
        values += (0.2 + 0.4 * torch.rand(2 * rows * 4, generator=generator, dtype=torch.float64)).tolist()
    return values


def ours(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The package's losses of the same numbers."""
    place = 0

    def take(rows: int, width: int) -> torch.Tensor:
        nonlocal place
        size = 2 * rows * width
        place += size
        return values[place - size : place].view(2, rows, width)

    decoder = [(take(NOISED + QUERIES, TOKENS), take(NOISED + QUERIES, 4)) for _ in range(LAYERS)]
    encoder = take(QUERIES, TOKENS), take(QUERIES, 4)
    text_mask = torch.tensor([[True] * 4, [True] * 3 + [False]])

    def padded(logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(~text_mask[:, None, :], -math.inf)

    output = TrainingOutput(
        decoder_logits=torch.stack([padded(logits) for logits, _ in decoder]),
        decoder_boxes_cxcywh=torch.stack([boxes for _, boxes in decoder]),
        encoder_logits=padded(encoder[0]),
        encoder_boxes_cxcywh=encoder[1],
        topk_indices=torch.zeros(2, QUERIES, dtype=torch.int64),
    )
    maps = torch.zeros(2, TOKENS, dtype=torch.bool)
    for phrase, tokens in enumerate(PHRASE_TOKENS):
        maps[phrase, tokens] = True
    targets = [
        Target(torch.tensor(boxes), torch.tensor(phrases), maps, torch.ones(len(boxes)))
        for boxes, phrases in zip(BOXES, PHRASE_OF_BOX, strict=True)
    ]
    plan = DenoisingPlan(
        DenoisingQueries(torch.zeros(2, NOISED, 1), torch.zeros(2, NOISED, 4), torch.zeros(11, 11).bool()),
        [Match(torch.tensor(list(of)), torch.tensor(list(of.values()))) for of in DENOISED],
        groups=2,
    )
    return grounding_losses(output, targets, text_mask, plan)


@pytest.mark.parametrize("seed", range(5))
def test_the_sum_of_all_losses(seed: int) -> None:
    values = random_values(seed)
    losses = ours(torch.tensor(values))
    assert len(losses) == 3 * (2 * LAYERS + 1)
    assert sum(value.item() for value in losses.values()) == pytest.approx(expected(values), rel=1e-5)


def test_gradients() -> None:
    values = random_values(7)
    tensor = torch.tensor(values, requires_grad=True)
    torch.stack(list(ours(tensor).values())).sum().backward()
    assert tensor.grad is not None
    step = 1e-6
    for number in range(0, len(values), 3):  # both kinds of numbers in all layers; 3 divides neither 4 nor 8
        around = []
        for sign in (1, -1):
            moved = list(values)
            moved[number] += sign * step
            around.append(expected(moved))
        slope = (around[0] - around[1]) / (2 * step)
        assert tensor.grad[number].item() == pytest.approx(slope, rel=2e-3, abs=2e-4), number
