"""Linear layers at the speed of the processor.

PyTorch's CPU builds multiply float32 matrices with MKL, which is slow on AMD processors. PyTorch carries
oneDNN too, which is fast on all of them and applies the activation on the way, without another pass over
memory (`benchmarks/end_to_end.py` measures the network that results). Inductor calls it
by an op of its own; where nothing but a result is wanted, so do these layers. Training, autocast, GPUs,
`torch.export` and `torch.compile` get the ordinary ops, which round differently in the last bits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["none", "relu", "gelu"]

CHUNK = 2048
"""Rows that `feed_forward` computes at a time."""


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters, computed by `linear`."""

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """(..., in_features) -> (..., out_features), `activation` applied to it."""
        return linear(x, self.weight, self.bias, activation)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> Tensor:
    """activation(x @ weight.T + bias): x (..., I), weight (O, I), bias (O) -> (..., O); exact GELU."""
    if _onednn_serves(x, weight):
        # An attribute of each call and not a name of this module: the op is there only with oneDNN.
        pointwise = torch.ops.mkldnn._linear_pointwise
        result: Tensor = pointwise(x.contiguous(), weight.contiguous(), bias, activation, [], "none")
        return result
    out = F.linear(x, weight, bias)
    if activation == "relu":
        return F.relu(out)
    return F.gelu(out) if activation == "gelu" else out


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` with a matrix for each sample: x (B, N, I), weight (B, O, I), bias (B, O) -> (B, N, O)."""
    if _onednn_serves(x, weight):
        biases = [None] * len(x) if bias is None else bias
        parts = [linear(*arguments) for arguments in zip(x, weight, biases, strict=True)]
        return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
    out = x @ weight.transpose(1, 2)
    return out if bias is None else out + bias.unsqueeze(1)


def feed_forward(x: Tensor, expand: Linear, reduce: Linear, activation: Activation) -> Tensor:
    """reduce(activation(expand(x))) for x (..., C).

    In inference on a CPU a part of the rows at a time: the hidden activations then stay in the processor's
    cache, and need megabytes instead of hundreds of them.
    """
    rows = x.shape[:-1].numel()
    only_result = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if only_result and x.device.type == "cpu" and rows > CHUNK:
        parts = x.reshape(rows, x.shape[-1]).split(CHUNK)
        return torch.cat([reduce(expand(part, activation)) for part in parts]).view(*x.shape[:-1], -1)
    out: Tensor = reduce(expand(x, activation))
    return out


def _onednn_serves(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0
        and _ONEDNN
    )


_ONEDNN: bool = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
