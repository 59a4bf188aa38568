from __future__ import annotations

import math

import torch

from groundingml.models.grounding_dino.positions import (
    box_embedding,
    grid_centres,
    grid_embedding,
    image_embedding,
    inverse_sigmoid,
    sine_embedding,
    valid_ratio,
)


def test_sine_embedding_by_hand():
    found = sine_embedding(torch.tensor([0.25, 3.0]), 4, temperature=100.0)
    # periods are 100 ** (0 / 4) = 1 and 100 ** (2 / 4) = 10
    expected = [
        [math.sin(math.pi / 2), math.cos(math.pi / 2), math.sin(math.pi / 20), math.cos(math.pi / 20)],
        [0.0, 1.0, math.sin(0.6 * math.pi), math.cos(0.6 * math.pi)],
    ]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=0)


def test_boxes_are_embedded_y_first():
    embedding = box_embedding(torch.tensor([0.1, 0.2, 0.3, 0.4]), 6)
    expected = torch.cat([sine_embedding(torch.tensor(x), 6) for x in (0.2, 0.1, 0.3, 0.4)])
    assert torch.equal(embedding, expected)


def test_image_positions_run_over_the_valid_area():
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[:, :2, :3] = True
    found = image_embedding(mask, 8, temperature=20.0).view(4, 6, 8)
    torch.testing.assert_close(found[1, 0, :4], sine_embedding(torch.tensor(1.0), 4, 20.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found[0, 1, 4:], sine_embedding(torch.tensor(2 / 3), 4, 20.0), atol=1e-5, rtol=0
    )


def test_positions_of_a_map_without_padding_are_those_of_a_full_mask():
    mask = torch.ones(1, 5, 7, dtype=torch.bool)
    found = grid_embedding((5, 7), 8, 20.0, torch.device("cpu"))
    assert torch.equal(found, image_embedding(mask, 8, temperature=20.0))


def test_valid_ratio_is_width_then_height():
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[:, :1, :3] = True
    assert valid_ratio(mask).tolist() == [[0.5, 0.25]]


def test_grid_centres_are_relative_to_the_valid_area():
    centres = grid_centres([(2, 4), (1, 2)], torch.tensor([[[0.5, 1.0], [1.0, 1.0]]]))
    assert centres.shape == (1, 10, 2)
    assert centres[0, :3].tolist() == [[0.25, 0.25], [0.75, 0.25], [1.25, 0.25]]
    assert centres[0, 4].tolist() == [0.25, 0.75]
    assert centres[0, 8:].tolist() == [[0.25, 0.5], [0.75, 0.5]]


def test_inverse_sigmoid_and_its_limits():
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid(), 1e-3), x, atol=1e-4, rtol=1e-4)
    limits = inverse_sigmoid(torch.tensor([0.0, 1.0, -3.0, 7.0]), 1e-3)
    torch.testing.assert_close(limits, torch.tensor([-1.0, 1.0, -1.0, 1.0]) * math.log(1000.0))
