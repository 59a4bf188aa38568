from __future__ import annotations

import pytest
import torch

from groundingml.inference.merging import box_iou, keep_after_merge

A = (0.0, 0.0, 10.0, 10.0)
NEAR_A = (0.0, 0.0, 10.0, 9.0)  # IoU 0.9
HALF_A = (0.0, 0.0, 10.0, 5.0)  # IoU 0.5
FAR = (50.0, 50.0, 60.0, 60.0)


def test_iou_by_hand() -> None:
    boxes = torch.tensor([A, HALF_A, FAR, (5.0, 5.0, 15.0, 15.0), (3.0, 3.0, 3.0, 3.0)])
    expected = [1.0, 0.5, 0.0, 25 / 175, 0.0]
    assert box_iou(boxes[:1], boxes)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rows", "kept", "why"),
    [
        ([(A, 0.5, 0, 0), (NEAR_A, 0.9, 0, 1)], [1], "two aliases found one object: the better stays"),
        ([(A, 0.5, 0, 0), (NEAR_A, 0.9, 0, 0)], [1, 0], "one prompt's boxes stay as the network gave them"),
        ([(A, 0.5, 0, 0), (NEAR_A, 0.9, 1, 1)], [1, 0], "other labels never suppress"),
        ([(A, 0.9, 0, 0), (HALF_A, 0.5, 0, 1)], [0, 1], "too little overlap"),
        ([(A, 0.9, 0, 0), (FAR, 0.5, 0, 1)], [0, 1], "no overlap"),
        ([(A, 0.5, 0, 1), (A, 0.5, 0, 0)], [0], "equal scores: the first stays"),
        (
            [(NEAR_A, 0.9, 0, 0), (A, 0.8, 0, 1), ((0.0, 0.0, 10.0, 11.5), 0.7, 0, 0)],
            [0, 2],
            "a suppressed box suppresses nothing",
        ),
        ([(A, 0.9, 0, 0), (A, 0.8, 0, 1), (A, 0.7, 0, 2), (FAR, 0.6, 0, 2)], [0, 3], "three aliases"),
        ([], [], "nothing found"),
    ],
)
def test_merge(rows: list[tuple[tuple[float, ...], float, int, int]], kept: list[int], why: str) -> None:
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    scores = torch.tensor([row[1] for row in rows])
    labels = torch.tensor([row[2] for row in rows], dtype=torch.long)
    prompts = torch.tensor([row[3] for row in rows], dtype=torch.long)
    assert keep_after_merge(boxes, scores, labels, prompts, 0.7).tolist() == kept, why
