"""The compiled library carries the CUDA kernels of every op, also where there is no GPU to run them on."""

from __future__ import annotations

import pytest
import torch

from groundingml import ops

OPS = (
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "ms_deform_attn_from_offsets",
    "ms_deform_attn_from_offsets_backward",
    "modulated_deform_conv",
    "modulated_deform_conv_backward",
)


@pytest.mark.parametrize("name", OPS)
def test_has_a_cuda_kernel(name: str) -> None:
    status = ops.status()
    if not status.cuda_archs:
        pytest.skip(f"compiled without CUDA kernels: {status.reason or 'nvcc was not there'}")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"groundingml::{name}", "CUDA")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch was built with CUDA")
def test_a_cpu_build_of_pytorch_loads_the_library() -> None:
    """Its CUDA half finds PyTorch's CUDA library by name when it is first needed, not when it is loaded."""
    if not ops.status().cuda_archs:
        pytest.skip("compiled without CUDA kernels")
    assert ops.status().available
