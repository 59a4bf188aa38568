"""The ops in plain PyTorch: the standard for the compiled ones, and their stand-in.

Shapes: `B` batch, `S` flattened image tokens (sum of H*W over the levels), `M` heads, `D` channels per head,
`Q` queries, `L` levels, `P` points. After "Deformable DETR" (Zhu et al., 2020), equation 3. For deformable
convolution: `C` and `O` channels in and out, `K` = Kh * Kw kernel taps, rows before columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from groundingml.ops.checks import (
    SpatialShapes,
    check_deform_conv,
    check_from_offsets,
    check_locations,
    level_shapes,
)


def ms_deform_attn(
    value: Tensor, spatial_shapes: SpatialShapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples; same signature and errors as `groundingml.ops.ms_deform_attn`.

    Args: value (B, S, M, D); spatial_shapes L x (H, W); sampling_locations (B, Q, M, L, P, 2) as (x, y),
    0 to 1; attention_weights (B, Q, M, L, P). Returns (B, Q, M*D) in value's dtype.
    """
    levels = level_shapes(spatial_shapes)
    check_locations(value, levels, sampling_locations, attention_weights)
    return _sample(value, levels, sampling_locations, attention_weights)


def ms_deform_attn_from_offsets(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """The same from what a layer predicts, as `groundingml.ops.ms_deform_attn_from_offsets`.

    Args: value (B, S, M, D); spatial_shapes L x (H, W); reference_points (B, Q, L, 2) as (x, y) or
    (B, Q, L, 4) as (cx, cy, w, h), normalised; sampling_offsets (B, Q, M, L, P, 2), in level pixels for 2
    coordinates and in half boxes divided by P for 4; attention_logits (B, Q, M, L*P) or (B, Q, M, L, P).
    Returns (B, Q, M*D) in value's dtype.
    """
    levels = level_shapes(spatial_shapes)
    check_from_offsets(value, levels, reference_points, sampling_offsets, attention_logits)
    compute = _compute_dtype(value)
    reference, offsets = reference_points.to(compute), sampling_offsets.to(compute)
    reference = reference[:, :, None, :, None, :]  # (B, Q, 1, L, 1, 2 or 4)
    points = offsets.shape[4]
    if reference.shape[-1] == 2:
        widths_heights = torch.tensor([(w, h) for h, w in levels], dtype=compute, device=value.device)
        locations = reference + offsets / widths_heights[:, None, :]
    else:
        locations = reference[..., :2] + offsets / points * reference[..., 2:] * 0.5
    weights = attention_logits.to(compute).flatten(3).softmax(-1).reshape(offsets.shape[:-1])
    return _sample(value, levels, locations, weights)


def modulated_deform_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    mask: Tensor,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Deformable convolution; same signature and errors as `groundingml.ops.modulated_deform_conv`.

    A moved, scaled tap is one query of deformable attention with one head, one level and one point: those
    samples, as an image in which the taps of an output pixel form a patch of their own, go through an
    ordinary convolution.
    """
    out_height, out_width = check_deform_conv(x, weight, bias, offsets, mask, stride, padding, dilation)
    batch, channels, height, width = x.shape
    rows, columns = weight.shape[2:]
    compute = _compute_dtype(x)
    value = x.permute(0, 2, 3, 1).reshape(batch, height * width, 1, channels)
    locations = _tap_locations(
        offsets.to(compute), (height, width), (rows, columns), stride, padding, dilation
    )
    factors = mask.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2).reshape(batch, -1, 1, 1, 1)
    samples = _sample(value.to(compute), [(height, width)], locations, factors)
    patches = samples.view(batch, out_height * rows, out_width * columns, channels).permute(0, 3, 1, 2)
    added = None if bias is None else bias.to(compute)
    output = functional.conv2d(patches, weight.to(compute), added, stride=(rows, columns))
    return output.to(x.dtype)


def _tap_locations(
    offsets: Tensor, size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int, dilation: int
) -> Tensor:
    """(B, Ho * Kh * Wo * Kw, 1, 1, 1, 2) where each tap looks, as (x, y) from 0 to 1 across the map."""
    batch, _, out_height, out_width = offsets.shape
    steps = [torch.arange(n, dtype=offsets.dtype, device=offsets.device) for n in (out_height, out_width)]
    taps = [torch.arange(n, dtype=offsets.dtype, device=offsets.device) * dilation for n in kernel]
    rows = (steps[0] * stride - padding)[:, None] + taps[0]  # (Ho, Kh)
    columns = (steps[1] * stride - padding)[:, None] + taps[1]  # (Wo, Kw)
    moved = offsets.reshape(batch, *kernel, 2, out_height, out_width).permute(0, 4, 1, 5, 2, 3)
    y = (rows[:, :, None, None] + moved[..., 0] + 0.5) / size[0]
    x = (columns + moved[..., 1] + 0.5) / size[1]
    return torch.stack([x, y], dim=-1).reshape(batch, -1, 1, 1, 1, 2)


def _compute_dtype(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _sample(value: Tensor, levels: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    compute = _compute_dtype(value)
    locations, weights = locations.to(compute), weights.to(compute)
    # A point further out than one image size touches no pixel; NaN and infinity count as such. Putting it at
    # -1 keeps grid_sample's float-to-integer conversion defined.
    locations = torch.where((locations > -1) & (locations < 2), locations, -1.0)
    output = value.new_zeros((batch * heads, channels, queries), dtype=compute)
    start = 0
    for level, (height, width) in enumerate(levels):
        image = value[:, start : start + height * width].to(compute)  # (B, H*W, M, D)
        image = image.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, points, 2) - 1
        sampled = functional.grid_sample(
            image, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        weight = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        output = output + (sampled * weight).sum(-1)
        start += height * width
    output = output.reshape(batch, heads * channels, queries).transpose(1, 2)
    return output.contiguous().to(value.dtype)
