"""Multi-scale deformable attention in an ONNX graph: from standard operators, or as one node of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from groundingml.models.grounding_dino.positions import SpatialShapes

CUSTOM_OP = "groundingml::MSDeformAttnFromOffsets"
"""Inputs: value (B, S, M, D), spatial_shapes (L, 2) int64 as (height, width), reference_points (B, Q, L, 2
or 4), sampling_offsets (B, Q, M, L, P, 2), attention_logits (B, Q, M, L * P); output: (B, Q, M * D). What it
computes is that of `groundingml.ops.ms_deform_attn_from_offsets`."""


def sample_with_standard_operators(
    value: Tensor, shapes: SpatialShapes, reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """`ms_deform_attn_from_offsets` with GridSample, for any level sizes: nothing in it is a constant of the
    trace but the numbers of heads, levels and points."""
    heads, levels, points = (int(size) for size in offsets.shape[2:5])
    weights = logits.flatten(3).softmax(-1).unflatten(-1, (levels, points))
    output: Tensor | None = None
    start = 0
    for level, (height, width) in enumerate(shapes):
        reference = reference_points[:, :, None, level, None, :]  # (B, Q, 1, 1, 2 or 4)
        offset = offsets[:, :, :, level]  # (B, Q, M, P, 2)
        if reference_points.shape[-1] == 2:
            location = reference + torch.stack([offset[..., 0] / width, offset[..., 1] / height], dim=-1)
        else:
            location = reference[..., :2] + offset / points * reference[..., 2:] * 0.5
        # A point further out than one image size touches no pixel.
        location = torch.where((location > -1) & (location < 2), location, -1.0)
        grid = (2 * location - 1).transpose(1, 2).flatten(0, 1)  # (B * M, Q, P, 2)
        image = value[:, start : start + height * width].permute(0, 2, 3, 1).flatten(0, 1)
        image = image.unflatten(-1, (height, width))  # (B * M, D, H, W)
        sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)  # (B * M, 1, Q, P)
        part = (sampled * weight).sum(-1)
        output = part if output is None else output + part
        start += height * width
    assert output is not None
    return output.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)


def sample_with_custom_node(
    value: Tensor, shapes: SpatialShapes, reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """The same as one node ``CUSTOM_OP``."""
    sizes = torch.stack([torch.stack([torch.as_tensor(size) for size in shape]) for shape in shapes])
    apply: Callable[..., Tensor] = _CustomNode.apply
    return apply(value, sizes, reference_points, offsets, logits)


class _CustomNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, sizes: Tensor, *geometry: Tensor) -> Tensor:
        shapes = [(int(height), int(width)) for height, width in sizes.tolist()]
        return sample_with_standard_operators(value, shapes, *geometry)

    @staticmethod
    def symbolic(g: Any, value: Any, sizes: Any, *geometry: Any) -> Any:
        node = g.op(CUSTOM_OP, value, sizes, *geometry)
        node.setType(value.type().with_sizes([None, None, None]))
        return node
