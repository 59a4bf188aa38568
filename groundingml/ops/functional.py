"""The public ops: checked arguments in, the compiled kernel or the PyTorch reference behind.

Shapes: `B` batch, `S` flattened image tokens (sum of H*W over the levels), `M` heads, `D` channels per head,
`Q` queries, `L` levels, `P` points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from groundingml.ops import library, reference
from groundingml.ops.checks import SpatialShapes, check_from_offsets, check_locations, level_shapes
from groundingml.ops.registration import cast_for_autocast


def ms_deform_attn(
    value: Tensor, spatial_shapes: SpatialShapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Multi-scale deformable attention: per query and head, a weighted sum of bilinear samples of `value`.

    Zero outside the image, pixel centres at (i + 0.5) / size (`align_corners=False`). After "Deformable DETR"
    (Zhu et al., 2020), equation 3.

    Args:
        value: (B, S, M, D) in float64, float32, float16 or bfloat16; any strides.
        spatial_shapes: L pairs (height, width) whose products add up to S. An integer tensor (L, 2) works,
            but is read back to the host, which waits for a GPU and breaks a compiled graph: prefer a list.
        sampling_locations: (B, Q, M, L, P, 2) as (x, y), 0 to 1 across the image. NaN and infinity sample
            nothing.
        attention_weights: (B, Q, M, L, P).

    Geometry (all but value) is float32, or value's dtype; arithmetic is in float32, for float64 in float64.

    Returns:
        (B, Q, M*D) in value's dtype.

    Raises:
        ValueError: shapes or devices do not fit, and TypeError: dtypes do not; both say what was expected.
    """
    levels = level_shapes(spatial_shapes)
    check_locations(value, levels, sampling_locations, attention_weights)
    if library.can_run(value):
        output: Tensor = torch.ops.groundingml.ms_deform_attn(
            value, _flat(levels), sampling_locations, attention_weights
        )
        return output
    if torch.is_autocast_enabled(value.device.type):
        value, sampling_locations, attention_weights = cast_for_autocast(
            value.device.type, value, sampling_locations, attention_weights
        )
    return reference.ms_deform_attn(value, levels, sampling_locations, attention_weights)


def ms_deform_attn_from_offsets(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn` from what a layer predicts: the locations and the softmax are computed on the way.

    Args:
        value, spatial_shapes: as for `ms_deform_attn`.
        reference_points: (B, Q, L, 2) as (x, y) or (B, Q, L, 4) as (cx, cy, w, h), 0 to 1 across the image.
        sampling_offsets: (B, Q, M, L, P, 2) as (x, y). With 2 coordinates the location is
            reference + offset / (W, H), with 4 it is center + offset / P * (w, h) / 2.
        attention_logits: (B, Q, M, L*P) or (B, Q, M, L, P); softmax over the L*P points of a head.

    Dtypes, returns and errors: as for `ms_deform_attn`.
    """
    levels = level_shapes(spatial_shapes)
    check_from_offsets(value, levels, reference_points, sampling_offsets, attention_logits)
    if library.can_run(value):
        output: Tensor = torch.ops.groundingml.ms_deform_attn_from_offsets(
            value, _flat(levels), reference_points, sampling_offsets, attention_logits
        )
        return output
    if torch.is_autocast_enabled(value.device.type):
        value, reference_points, sampling_offsets, attention_logits = cast_for_autocast(
            value.device.type, value, reference_points, sampling_offsets, attention_logits
        )
    return reference.ms_deform_attn_from_offsets(
        value, levels, reference_points, sampling_offsets, attention_logits
    )


def _flat(levels: Sequence[tuple[int, int]]) -> list[int]:
    return [size for level in levels for size in level]
