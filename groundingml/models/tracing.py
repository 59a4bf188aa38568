"""Whether the network is being traced, as an ONNX export does: then sizes are values of the graph."""

from __future__ import annotations

import torch
from torch import Tensor


def is_tracing() -> bool:
    """True in `torch.jit.trace`, where a size is a tensor, which an int would fix for ever."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
    return tracing


def at_most(count: int, x: Tensor, dim: int) -> int:
    """``count``, or the size of ``x`` along ``dim`` if that is less."""
    if is_tracing():
        size: int = torch.clamp(torch.as_tensor(x.shape[dim]), max=count)  # type: ignore[assignment]
        return size
    return min(count, x.shape[dim])
