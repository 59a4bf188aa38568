from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from groundingml.inference.anchor_candidates import select_anchor_candidates
from groundingml.inference.prompts import Prompt, TextChunk
from groundingml.models.glip import GlipConfig, GlipOutput
from groundingml.models.glip.anchors import anchors_xyxy
from groundingml.models.glip.box_coder import encode

CHUNK = TextChunk(
    "cat . remote control", (101, 1, 2, 3, 4, 102), (Prompt(0, (1,), (0,)), Prompt(1, (3, 4), (1,)))
)
NONE = torch.zeros(2)
SHAPES = [(4, 4), (2, 2)]


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def output_of(*cells: tuple[int, list[float], dict[int, float], float]) -> GlipOutput:
    """A 40 x 32 image in which only these cells answer: (cell, box, {token: probability}, centerness)."""
    anchors = anchors_xyxy(SHAPES, (8, 16), 8, torch.device("cpu"))
    logits = torch.full((1, 20, 6), -20.0)
    deltas, centerness = torch.zeros(1, 20, 4), torch.zeros(1, 20)
    for cell, box, tokens, central in cells:
        deltas[0, cell] = encode(torch.tensor([box]), anchors[cell : cell + 1])[0]
        centerness[0, cell] = logit(central)
        for token, probability in tokens.items():
            logits[0, cell, token] = logit(probability)
    return GlipOutput(logits, deltas, centerness, anchors, (16, 4), ((32, 40),))


def found(output: GlipOutput, thresholds: torch.Tensor = NONE, chunk: TextChunk = CHUNK, **changes: object):
    config = replace(GlipConfig.tiny(), **changes)
    candidates = select_anchor_candidates(output, 0, chunk, thresholds, config)
    centre, size = candidates.boxes_cxcywh[:, :2], candidates.boxes_cxcywh[:, 2:]
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=1) * torch.tensor([40, 32, 40, 32])
    rows = zip(candidates.label_ids.tolist(), candidates.scores.tolist(), boxes.tolist(), strict=True)
    return [(label, round(score, 3), [round(x, 2) for x in box]) for label, score, box in rows]


def test_score_is_the_mean_of_the_tokens_with_centerness():
    output = output_of((5, [2, 3, 20, 24], {1: 0.49, 3: 0.4, 4: 0.8}, 0.81))
    box = [2, 3, 20, 24]
    assert found(output) == [
        (1, round(math.sqrt(0.6 * 0.81), 3), box),
        (0, round(math.sqrt(0.49 * 0.81), 3), box),
    ]


def test_the_least_class_score_comes_before_centerness():
    """0.04 is no candidate however central; 0.06 is one however far out."""
    output = output_of((0, [0, 0, 9, 9], {1: 0.04}, 0.999), (15, [20, 20, 30, 30], {1: 0.06}, 0.01))
    assert [(label, score) for label, score, _ in found(output)] == [(0, round(math.sqrt(0.06 * 0.01), 3))]


def test_threshold_of_each_label_judges_the_final_score():
    output = output_of((5, [2, 3, 20, 24], {1: 0.5, 3: 0.5, 4: 0.5}, 0.5))
    assert {row[0] for row in found(output, torch.tensor([0.4, 0.6]))} == {0}
    assert {row[0] for row in found(output, torch.tensor([0.51, 0.49]))} == {1}


def test_boxes_end_at_the_image():
    output = output_of((17, [-30, -4, 60, 100], {1: 0.9}, 0.9))
    assert found(output)[0][2] == [0, 0, 39, 31]


def test_neighbours_with_the_same_thing_give_one_box():
    cells = [(cell, [2, 3, 20 + cell / 10, 24], {1: 0.5 + cell / 100}, 0.9) for cell in (5, 6, 9)]
    output = output_of(*cells, (18, [2, 3, 20, 24], {1: 0.1}, 0.9), (19, [25, 3, 39, 24], {1: 0.1}, 0.9))
    boxes = [box for _, _, box in found(output)]
    assert boxes == [[2, 3, 20.9, 24], [25, 3, 39, 24]]


def test_limits():
    cells = [(cell, [2 * cell, 0, 2 * cell + 1, 9], {1: 0.5 + cell / 100}, 0.9) for cell in range(16)]
    output = output_of(*cells, (16, [30, 20, 38, 30], {1: 0.1}, 0.9))
    assert len(found(output)) == 17
    assert len(found(output, max_detections=5)) == 5
    limited = found(output, candidates_per_level=3)
    assert [box[0] for _, _, box in limited] == [30, 28, 26, 30], (
        "three of the first level, one of the second"
    )


def test_of_aliases_the_best_counts():
    aliases = TextChunk("", CHUNK.input_ids, (Prompt(7, (1,), (0,)), Prompt(8, (3, 4), (0,))))
    output = output_of((5, [2, 3, 20, 24], {1: 0.49, 3: 0.8, 4: 0.8}, 0.5))
    assert [(label, score) for label, score, _ in found(output, chunk=aliases)] == [
        (0, round(math.sqrt(0.4), 3))
    ]


def test_nothing_found():
    assert found(output_of()) == []


@pytest.mark.parametrize("aggregation", ["max", "mean"])
def test_aggregation(aggregation):
    output = output_of((5, [2, 3, 20, 24], {3: 0.4, 4: 0.8}, 0.5))
    expected = math.sqrt(0.5 * (0.8 if aggregation == "max" else 0.6))
    assert found(output, score_aggregation=aggregation)[0][1] == round(expected, 3)
