"""Stochastic depth (arXiv:1603.09382): in training, a residual branch is left out for some samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Zero a sample's branch with probability `rate`; scale the others so that the mean is kept."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """branch (B, ...) -> (B, ...)."""
        if self.rate == 0.0 or not self.training:
            return branch
        keep = torch.empty(
            (branch.shape[0],) + (1,) * (branch.ndim - 1), dtype=branch.dtype, device=branch.device
        )
        return branch * keep.bernoulli_(1.0 - self.rate).div_(1.0 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
