"""Modulated deformable convolution (DCNv2, arXiv:1811.11168), built on this library's own sampling op.

Sampling a map at one moved point per kernel tap and scaling the sample is multi-scale deformable attention
with one head, one level and one point, so `ms_deform_attn` (compiled for CPU and CUDA, with a backward pass)
gathers the samples, and an ordinary convolution multiplies them.

Shapes: `B` batch, `C` and `O` channels in and out, `K` = Kh * Kw kernel taps, rows before columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from groundingml.ops.functional import ms_deform_attn


def modulated_deform_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    mask: Tensor,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """A convolution whose taps are moved by `offsets` and scaled by `mask` at every output pixel.

    Equal to `torchvision.ops.deform_conv2d` with one group: bilinear samples, zero outside the map.

    Args:
        x: (B, C, H, W); weight: (O, C, Kh, Kw); bias: (O) or None.
        offsets: (B, 2K, Ho, Wo) in pixels of `x`: channel 2k moves tap k down, channel 2k + 1 to the right.
        mask: (B, K, Ho, Wo) factor of each tap. Like `offsets` of x's dtype, or float32 beside 16 bits.
        stride, padding: as of a convolution; Ho and Wo follow from them.

    Returns:
        (B, O, Ho, Wo).

    Raises:
        ValueError: shapes that do not fit; the message says what was expected.
    """
    batch, channels, height, width = _check_input(x, weight)
    rows, columns = weight.shape[2:]
    out_height = (height + 2 * padding - rows) // stride + 1
    out_width = (width + 2 * padding - columns) // stride + 1
    taps = rows * columns
    _check_shape("offsets", offsets, (batch, 2 * taps, out_height, out_width), "(B, 2K, Ho, Wo)")
    _check_shape("mask", mask, (batch, taps, out_height, out_width), "(B, K, Ho, Wo)")

    value = x.permute(0, 2, 3, 1).reshape(batch, height * width, 1, channels)
    samples = ms_deform_attn(
        value,
        [(height, width)],
        _locations(offsets, (height, width), (rows, columns), stride, padding),
        mask.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2).reshape(batch, -1, 1, 1, 1),
    )
    # (B, Ho, Kh, Wo, Kw, C): an image in which the taps of each output pixel form a patch of their own.
    patches = samples.view(batch, out_height * rows, out_width * columns, channels).permute(0, 3, 1, 2)
    return conv2d(patches, weight, bias, stride=(rows, columns))


def reread(tensor: Tensor, height: int, width: int) -> Tensor:
    """The first `channels * height * width` numbers of each sample as a map of that size.

    GLIP's network runs one of its convolutions on a level of half the resolution with the offsets and masks
    predicted for the level below, which are four times too many. Its CUDA kernel never notices: it reads the
    memory of a sample from the beginning, with the strides of the OUTPUT. So a tap's offset at some output
    pixel comes from an unrelated place, often of an unrelated channel. The published weights were trained
    with that, so it is part of the model, and done here on purpose and in the open.

    Args:
        tensor: (B, channels, H, W) with H * W >= height * width.

    Returns:
        (B, channels, height, width); for H, W = height, width the tensor as it is.
    """
    batch, channels, *size = tensor.shape
    if size == [height, width]:
        return tensor
    if size[0] * size[1] < height * width:
        raise ValueError(
            f"a map of {size[0]} x {size[1]} holds too few numbers to be read as one of {height} x {width}"
        )
    return tensor.flatten(1)[:, : channels * height * width].reshape(batch, channels, height, width)


def _locations(
    offsets: Tensor, size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int
) -> Tensor:
    """(B, Ho * Kh * Wo * Kw, 1, 1, 1, 2) where each tap looks, as (x, y) from 0 to 1 across the map."""
    batch, _, out_height, out_width = offsets.shape
    if offsets.dtype in (torch.float16, torch.bfloat16):
        offsets = offsets.float()  # bfloat16 knows no pixel positions above 256
    steps = [torch.arange(n, dtype=offsets.dtype, device=offsets.device) for n in (out_height, out_width)]
    taps = [torch.arange(n, dtype=offsets.dtype, device=offsets.device) for n in kernel]
    rows = (steps[0] * stride - padding)[:, None] + taps[0]  # (Ho, Kh)
    columns = (steps[1] * stride - padding)[:, None] + taps[1]  # (Wo, Kw)
    moved = offsets.reshape(batch, *kernel, 2, out_height, out_width).permute(0, 4, 1, 5, 2, 3)
    y = (rows[:, :, None, None] + moved[..., 0] + 0.5) / size[0]
    x = (columns + moved[..., 1] + 0.5) / size[1]
    return torch.stack([x, y], dim=-1).reshape(batch, -1, 1, 1, 1, 2)


def _check_input(x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    if x.dim() != 4:
        raise ValueError(f"x must have shape (B, C, H, W), got {tuple(x.shape)}")
    if weight.dim() != 4 or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"weight must have shape (O, C, Kh, Kw) with C = {x.shape[1]} channels, got {tuple(weight.shape)}"
        )
    batch, channels, height, width = x.shape
    return batch, channels, height, width


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {meaning} = {expected}, got {tuple(tensor.shape)}")
