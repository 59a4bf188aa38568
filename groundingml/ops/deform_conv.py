"""Modulated deformable convolution (DCNv2, arXiv:1811.11168): checked arguments in, the compiled kernel or
the PyTorch reference behind.

Shapes: `B` batch, `C` and `O` channels in and out, `K` = Kh * Kw kernel taps, rows before columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from groundingml.ops import library, reference
from groundingml.ops.checks import check_deform_conv
from groundingml.ops.registration import cast_convolution_for_autocast


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
    """A convolution whose taps are moved by `offsets` and scaled by `mask` at every output pixel.

    Equal to `torchvision.ops.deform_conv2d` with one group: bilinear samples, zero outside the map. NaN and
    infinite offsets sample nothing.

    Args:
        x: (B, C, H, W) in float64, float32, float16 or bfloat16; any strides, channels last is fastest.
        weight: (O, C, Kh, Kw) and bias: (O) or None, of x's dtype.
        offsets: (B, 2K, Ho, Wo) in pixels of `x`: channel 2k moves tap k down, channel 2k + 1 to the right.
        mask: (B, K, Ho, Wo) factor of each tap.
        stride, padding, dilation: as of a convolution; Ho and Wo follow from them.

    Offsets and mask are float32 or of x's dtype; arithmetic is in float32, for float64 in float64 (on a GPU
    the samples of 16-bit maps are rounded to 16 bits before they are multiplied).

    Returns:
        (B, O, Ho, Wo) in x's dtype, contiguous.

    Raises:
        ValueError: shapes or devices do not fit, and TypeError: dtypes do not; both say what was expected.
    """
    check_deform_conv(x, weight, bias, offsets, mask, stride, padding, dilation)
    if library.can_run(x):
        output: Tensor = torch.ops.groundingml.modulated_deform_conv(
            x, weight, offsets, mask, stride, padding, dilation
        )
    else:
        if torch.is_autocast_enabled(x.device.type):
            x, weight, offsets, mask = cast_convolution_for_autocast(x.device.type, x, weight, offsets, mask)
        output = reference.modulated_deform_conv(x, weight, None, offsets, mask, stride, padding, dilation)
    return output if bias is None else output.add_(bias.to(output.dtype)[:, None, None])


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
