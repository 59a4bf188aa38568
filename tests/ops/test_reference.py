"""The PyTorch reference against the definition written as loops, and against transformers' module."""

from __future__ import annotations

import math

import pytest
import torch

from groundingml.ops import reference


def by_definition(value, levels, locations, weights):
    """Equation 3 of Deformable DETR, one number at a time."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    output = torch.zeros(batch, queries, heads, channels, dtype=value.dtype)
    start = 0
    for level, (height, width) in enumerate(levels):
        image = value[:, start : start + height * width].reshape(batch, height, width, heads, channels)
        start += height * width
        for b in range(batch):
            for q in range(queries):
                for m in range(heads):
                    for p in range(points):
                        x = float(locations[b, q, m, level, p, 0]) * width - 0.5
                        y = float(locations[b, q, m, level, p, 1]) * height - 0.5
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    bilinear = (1 - abs(x - column)) * (1 - abs(y - row))
                                    pixel = image[b, row, column, m]
                                    output[b, q, m] += weights[b, q, m, level, p] * bilinear * pixel
    return output.flatten(2)


def test_is_the_definition(make_inputs):
    inputs = make_inputs(batch=2, queries=5, heads=2, channels=3, points=3, dtype=torch.float64)
    expected = by_definition(inputs.value, inputs.levels, *inputs.geometry)
    torch.testing.assert_close(inputs.call(reference), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_from_offsets_is_the_plain_op_at_the_locations_of_deformable_detr(make_inputs, coordinates):
    inputs = make_inputs(coordinates, dtype=torch.float64)
    points, offsets, logits = inputs.geometry
    sizes = torch.tensor([(w, h) for h, w in inputs.levels], dtype=torch.float64)
    if coordinates == 2:
        locations = points[:, :, None, :, None] + offsets / sizes[:, None]
    else:
        locations = points[:, :, None, :, None, :2] + offsets / 4 * points[:, :, None, :, None, 2:] * 0.5
    weights = logits.softmax(-1).reshape(offsets.shape[:-1])
    expected = reference.ms_deform_attn(inputs.value, inputs.levels, locations, weights)
    torch.testing.assert_close(inputs.call(reference), expected, rtol=0, atol=1e-12)


def test_equals_transformers(make_inputs):
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    inputs = make_inputs(queries=20, heads=4, channels=16)
    locations, weights = inputs.geometry
    shapes = torch.tensor(inputs.levels)
    expected = MultiScaleDeformableAttention()(
        inputs.value, shapes, inputs.levels, shapes.new_zeros(2), locations, weights, 64
    )
    torch.testing.assert_close(inputs.call(reference), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("far", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3.0])
def test_points_nowhere_near_the_image_sample_nothing(make_inputs, far):
    inputs = make_inputs()
    inputs.geometry[0][:, :, :, :, 1:] = far
    only_first_points = [tensor[:, :, :, :, :1] for tensor in inputs.geometry]
    expected = reference.ms_deform_attn(inputs.value, inputs.levels, *only_first_points)
    torch.testing.assert_close(inputs.call(reference), expected, rtol=1e-6, atol=1e-6)
