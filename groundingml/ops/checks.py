"""What may go into the ops, with errors that print what came and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

SpatialShapes: TypeAlias = "Sequence[Sequence[int]] | Sequence[tuple[int, int]] | Tensor"

_VALUE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def level_shapes(spatial_shapes: SpatialShapes) -> list[tuple[int, int]]:
    """`spatial_shapes` as a list of L (height, width).

    A tensor (L, 2) is read back to the host, which waits for a GPU and breaks a compiled graph: pass a list
    where speed matters.
    """
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or spatial_shapes.is_floating_point():
            raise ValueError(
                "spatial_shapes as a tensor must be integers of shape (L, 2), "
                f"got {spatial_shapes.dtype} of shape {tuple(spatial_shapes.shape)}"
            )
        spatial_shapes = spatial_shapes.tolist()
    levels = []
    for shape in spatial_shapes:
        if len(shape) != 2:
            raise ValueError(f"spatial_shapes must be a list of (height, width), got {list(spatial_shapes)}")
        levels.append((shape[0], shape[1]))
    if not levels:
        raise ValueError("spatial_shapes is empty: at least one level (height, width) is needed")
    return levels


def check_locations(
    value: Tensor, levels: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    """Raises ValueError or TypeError unless the arguments of `ms_deform_attn` fit each other."""
    batch, heads = _check_value(value, levels)
    queries, points = _queries_and_points(sampling_locations, "sampling_locations")
    expected = (batch, queries, heads, len(levels), points)
    _check_shape("sampling_locations", sampling_locations, (*expected, 2), "(B, Q, M, L, P, 2)")
    _check_shape("attention_weights", attention_weights, expected, "(B, Q, M, L, P)")
    for name, tensor in (
        ("sampling_locations", sampling_locations),
        ("attention_weights", attention_weights),
    ):
        _check_companion(value, name, tensor)


def check_from_offsets(
    value: Tensor,
    levels: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> None:
    """Raises ValueError or TypeError unless the arguments of `ms_deform_attn_from_offsets` fit each other."""
    batch, heads = _check_value(value, levels)
    queries, points = _queries_and_points(sampling_offsets, "sampling_offsets")
    expected = (batch, queries, heads, len(levels), points)
    _check_shape("sampling_offsets", sampling_offsets, (*expected, 2), "(B, Q, M, L, P, 2)")
    coordinates = 4 if reference_points.dim() == 4 and reference_points.shape[3] == 4 else 2
    reference_shape = (batch, queries, len(levels), coordinates)
    _check_shape("reference_points", reference_points, reference_shape, "(B, Q, L, 2) or (B, Q, L, 4)")
    if attention_logits.dim() == 5:
        _check_shape("attention_logits", attention_logits, expected, "(B, Q, M, L, P)")
    else:
        flat = (batch, queries, heads, len(levels) * points)
        _check_shape("attention_logits", attention_logits, flat, "(B, Q, M, L*P) or (B, Q, M, L, P)")
    for name, tensor in (
        ("reference_points", reference_points),
        ("sampling_offsets", sampling_offsets),
        ("attention_logits", attention_logits),
    ):
        _check_companion(value, name, tensor)


def check_deform_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    mask: Tensor,
    stride: int,
    padding: int,
    dilation: int,
) -> tuple[int, int]:
    """(Ho, Wo) of `modulated_deform_conv`; raises ValueError or TypeError unless its arguments fit."""
    if x.dim() != 4:
        raise ValueError(f"x must have shape (B, C, H, W), got {_shape(x)}")
    if x.dtype not in _VALUE_DTYPES:
        raise TypeError(f"x must be float64, float32, float16 or bfloat16, got {x.dtype}")
    batch, channels, height, width = x.shape
    if weight.dim() != 4 or weight.shape[1] != channels:
        raise ValueError(
            f"weight must have shape (O, C, Kh, Kw) with C = {channels} channels, got {_shape(weight)}"
        )
    out_channels, _, rows, columns = weight.shape
    if min(channels, height, width, out_channels, rows, columns) < 1:
        raise ValueError(
            f"channels, height, width and taps must not be 0, got x {_shape(x)} and weight {_shape(weight)}"
        )
    if stride < 1 or dilation < 1 or padding < 0:
        raise ValueError(
            "stride and dilation must be positive and padding not negative, "
            f"got stride {stride}, padding {padding}, dilation {dilation}"
        )
    out_height = (height + 2 * padding - dilation * (rows - 1) - 1) // stride + 1
    out_width = (width + 2 * padding - dilation * (columns - 1) - 1) // stride + 1
    if out_height < 1 or out_width < 1:
        raise ValueError(f"the kernel of {rows} x {columns} taps is larger than the padded x {_shape(x)}")
    taps = rows * columns
    _check_shape("offsets", offsets, (batch, 2 * taps, out_height, out_width), "(B, 2K, Ho, Wo)")
    _check_shape("mask", mask, (batch, taps, out_height, out_width), "(B, K, Ho, Wo)")
    _check_companion(x, "offsets", offsets, "x")
    _check_companion(x, "mask", mask, "x")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name} must be {x.dtype} like x, got {tensor.dtype}")
        _check_device(x, name, tensor, "x")
    if bias is not None:
        _check_shape("bias", bias, (out_channels,), "(O,)")
    return out_height, out_width


def _check_value(value: Tensor, levels: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if value.dim() != 4:
        raise ValueError(f"value must have shape (B, S, M, D), got {_shape(value)}")
    if value.dtype not in _VALUE_DTYPES:
        raise TypeError(f"value must be float64, float32, float16 or bfloat16, got {value.dtype}")
    total = 0
    for height, width in levels:
        if height < 1 or width < 1:
            raise ValueError(f"spatial_shapes must be positive, got (height, width) = ({height}, {width})")
        total = total + height * width
    if value.shape[1] != total:
        raise ValueError(
            f"value must have S = {total} rows, the sum of height * width over {list(levels)}, "
            f"got S = {value.shape[1]} in (B, S, M, D) = {_shape(value)}"
        )
    if value.shape[2] < 1 or value.shape[3] < 1:
        raise ValueError(f"value needs at least one head and one channel, got (B, S, M, D) = {_shape(value)}")
    return value.shape[0], value.shape[2]


def _queries_and_points(tensor: Tensor, name: str) -> tuple[int, int]:
    if tensor.dim() != 6:
        raise ValueError(f"{name} must have shape (B, Q, M, L, P, 2), got {_shape(tensor)}")
    if tensor.shape[4] < 1:
        raise ValueError(f"{name} needs at least one point, got (B, Q, M, L, P, 2) = {_shape(tensor)}")
    return tensor.shape[1], tensor.shape[4]


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {meaning} = {expected}, got {_shape(tensor)}")


def _check_companion(value: Tensor, name: str, tensor: Tensor, value_name: str = "value") -> None:
    """Geometry has value's dtype; beside 16-bit values it may be float32, which is more accurate.

    In an autocast region the dtypes are about to be cast.
    """
    allowed = (value.dtype,) if value.dtype == torch.float64 else (value.dtype, torch.float32)
    if tensor.dtype not in allowed and not torch.is_autocast_enabled(value.device.type):
        names = " or ".join(str(dtype) for dtype in dict.fromkeys(allowed))
        raise TypeError(f"{name} must be {names} when {value_name} is {value.dtype}, got {tensor.dtype}")
    _check_device(value, name, tensor, value_name)


def _check_device(value: Tensor, name: str, tensor: Tensor, value_name: str) -> None:
    if tensor.device != value.device:
        raise ValueError(
            f"{name} is on {tensor.device} but {value_name} is on {value.device}; "
            f"move it with .to({value_name}.device)"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
