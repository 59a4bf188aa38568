"""The public ops: checked arguments in, the compiled kernel or the PyTorch reference behind."""

from __future__ import annotations

from torch import Tensor

from groundingml.ops import reference
from groundingml.ops.checks import SpatialShapes


def ms_deform_attn(
    value: Tensor, spatial_shapes: SpatialShapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    return reference.ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_from_offsets(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    return reference.ms_deform_attn_from_offsets(
        value, spatial_shapes, reference_points, sampling_offsets, attention_logits
    )
