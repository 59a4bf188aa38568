"""What PyTorch has to know about the compiled ops beyond their kernels: fake tensors, autograd, autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def register() -> torch.library.Library:
    """Registers all of it, after the library with the schemas is loaded; lasts as long as what it returns."""
    torch.library.register_fake("groundingml::ms_deform_attn", _fake_forward)
    torch.library.register_fake("groundingml::ms_deform_attn_from_offsets", _fake_forward_from_offsets)
    torch.library.register_fake("groundingml::ms_deform_attn_backward", _fake_backward)
    torch.library.register_fake("groundingml::ms_deform_attn_from_offsets_backward", _fake_backward)
    torch.library.register_autograd("groundingml::ms_deform_attn", _backward, setup_context=_save)
    torch.library.register_autograd(
        "groundingml::ms_deform_attn_from_offsets", _backward_from_offsets, setup_context=_save
    )
    torch.library.register_fake("groundingml::modulated_deform_conv", _fake_convolution)
    torch.library.register_fake("groundingml::modulated_deform_conv_backward", _fake_convolution_backward)
    torch.library.register_autograd(
        "groundingml::modulated_deform_conv", _backward_convolution, setup_context=_save_convolution
    )
    library = torch.library.Library("groundingml", "IMPL")
    for device_type in ("cpu", "cuda"):
        for name in ("ms_deform_attn", "ms_deform_attn_from_offsets"):
            _register_autocast(library, name, device_type)
        _register_convolution_autocast(library, device_type)
    return library


def cast_for_autocast(device_type: str, value: Tensor, *geometry: Tensor) -> tuple[Tensor, ...]:
    """What autocast does to the arguments: 16-bit values, float32 geometry if that does not fit.

    `torch.library.register_autocast` would cast the geometry as well, and a sampling location in bfloat16 is
    off by pixels. float64 is left alone, as everywhere in autocast.
    """
    if value.dtype == torch.float64:
        return value, *geometry
    dtype = torch.get_autocast_dtype(device_type)
    fits = (dtype, torch.float32)
    return value.to(dtype), *(tensor if tensor.dtype in fits else tensor.float() for tensor in geometry)


def cast_convolution_for_autocast(
    device_type: str, x: Tensor, weight: Tensor, offsets: Tensor, mask: Tensor
) -> tuple[Tensor, ...]:
    """The same for a deformable convolution: 16-bit map and weight, offsets and mask as accurate as given."""
    x, offsets, mask = cast_for_autocast(device_type, x, offsets, mask)
    return x, weight.to(x.dtype), offsets, mask


def _register_autocast(library: torch.library.Library, name: str, device_type: str) -> None:
    key = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}[device_type]
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    op = getattr(torch.ops.groundingml, name).default

    def kernel(value: Tensor, spatial_shapes: Sequence[int], *geometry: Tensor) -> Tensor:
        value, *cast_geometry = cast_for_autocast(device_type, value, *geometry)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            output: Tensor = op(value, spatial_shapes, *cast_geometry)
        return output

    library.impl(name, kernel, key)


def _register_convolution_autocast(library: torch.library.Library, device_type: str) -> None:
    key = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}[device_type]
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    op = torch.ops.groundingml.modulated_deform_conv.default

    def kernel(
        x: Tensor, weight: Tensor, offsets: Tensor, mask: Tensor, stride: int, padding: int, dilation: int
    ) -> Tensor:
        tensors = cast_convolution_for_autocast(device_type, x, weight, offsets, mask)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            output: Tensor = op(*tensors, stride, padding, dilation)
        return output

    library.impl("modulated_deform_conv", kernel, key)


def _fake_output(value: Tensor, coordinates: Tensor) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty((batch, coordinates.shape[1], heads * channels))


def _fake_forward(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    return _fake_output(value, sampling_locations)


def _fake_forward_from_offsets(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    return _fake_output(value, sampling_offsets)


def _fake_backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], *rest: Tensor | bool
) -> tuple[Tensor, ...]:
    """The gradients are contiguous, whatever the layout of the inputs."""
    inputs = (value, *(tensor for tensor in rest if isinstance(tensor, Tensor)))
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, spatial_shapes, *rest = inputs
    ctx.save_for_backward(value, *rest)
    ctx.spatial_shapes = spatial_shapes


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *rest = ctx.saved_tensors
    gradients = torch.ops.groundingml.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, *rest, torch.are_deterministic_algorithms_enabled()
    )
    return (gradients[0], None, *gradients[1:])


def _backward_from_offsets(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *rest = ctx.saved_tensors
    gradients = torch.ops.groundingml.ms_deform_attn_from_offsets_backward(
        grad_output, value, ctx.spatial_shapes, *rest, torch.are_deterministic_algorithms_enabled()
    )
    return (gradients[0], None, *gradients[1:])


def _fake_convolution(
    x: Tensor, weight: Tensor, offsets: Tensor, mask: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], offsets.shape[2], offsets.shape[3]))


def _fake_convolution_backward(grad_output: Tensor, *inputs: Tensor | int | bool) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs if isinstance(tensor, Tensor))


def _save_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.stride_padding_dilation = inputs[4:]


def _backward_convolution(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.groundingml.modulated_deform_conv_backward(
        grad_output,
        *ctx.saved_tensors,
        *ctx.stride_padding_dilation,
        torch.are_deterministic_algorithms_enabled(),
    )
    return *gradients, None, None, None
