"""Inputs for the tests of the CUDA kernels, and what they have to give according to the PyTorch reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from groundingml.ops import reference
from torch import Tensor

PYRAMID = ((6, 9), (3, 5), (2, 3), (1, 2))  # the 4 levels of a detector, tiny; S = 77


@dataclass
class Inputs:
    """Arguments of both ops (`points` is what the plain op calls sampling_locations, the fused one sampling_offsets)."""

    value: Tensor  # (B, S, M, D)
    shapes: list[tuple[int, int]]
    points: Tensor  # (B, Q, M, L, P, 2)
    weights: Tensor  # (B, Q, M, L, P)
    grad_output: Tensor  # (B, Q, M*D)
    reference: Tensor | None = None  # (B, Q, L, 2 or 4): None for the plain op
    expected: Tensor = field(init=False)  # in float64, on the CPU, like the gradients
    expected_grads: dict[str, Tensor] = field(init=False)

    def tensors(self) -> dict[str, Tensor]:
        """The op's differentiable arguments by name, in order."""
        if self.reference is None:
            return {"value": self.value, "points": self.points, "weights": self.weights}
        return {"value": self.value, "reference": self.reference, "points": self.points, "weights": self.weights}

    def to(self, device: str) -> Inputs:
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        result = replace(self, **moved, grad_output=self.grad_output.to(device))
        result.expected, result.expected_grads = self.expected, self.expected_grads
        return result

    def compute_expected(self) -> None:
        exact = {name: t.detach().cpu().double().requires_grad_() for name, t in self.tensors().items()}
        op = reference.ms_deform_attn if self.reference is None else reference.ms_deform_attn_from_offsets
        output = op(exact["value"], self.shapes, *list(exact.values())[1:])
        grads = torch.autograd.grad(output, list(exact.values()), self.grad_output.cpu().double())
        self.expected = output.detach()
        self.expected_grads = dict(zip(exact, grads, strict=True))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected||, in float64; NaN or a wrong shape fail any comparison."""
    if got.shape != expected.shape:
        return float("nan")
    difference = got.detach().cpu().double() - expected
    return float(difference.norm() / expected.norm().clamp(min=1e-30))


def build_inputs(
    dtype: torch.dtype = torch.float32,
    *,
    geometry: torch.dtype | None = None,
    coordinates: int = 0,
    batch: int = 2,
    queries: int | None = None,
    heads: int = 2,
    channels: int = 32,
    shapes: tuple[tuple[int, int], ...] = PYRAMID,
    points: int = 4,
    seed: int = 0,
) -> Inputs:
    """Random inputs; `coordinates` 0 is the plain op, 2 or 4 the fused one; no `queries` means Q == S, as in an encoder.

    About a tenth of the points lie outside of their level.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*size: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64) * (high - low) + low

    if geometry is None:
        geometry = torch.float64 if dtype == torch.float64 else torch.float32
    rows, levels = sum(h * w for h, w in shapes), len(shapes)
    q = rows if queries is None else queries
    fused = coordinates > 0
    value = (2 * uniform(batch, rows, heads, channels) - 1).to(dtype)
    weights = uniform(batch, q, heads, levels, points, low=-3.0, high=3.0)
    at = uniform(batch, q, heads, levels, points, 2, low=-0.05, high=1.05)
    inputs = Inputs(
        value=value,
        shapes=list(shapes),
        points=((at - 0.5) * 4 if fused else at).to(geometry),
        weights=(weights if fused else weights.flatten(3).softmax(-1).reshape(weights.shape)).to(geometry),
        grad_output=(2 * uniform(batch, q, heads * channels) - 1).to(dtype),
    )
    if fused:
        reference_points = uniform(batch, q, levels, coordinates, low=0.1, high=0.9)
        inputs.reference = reference_points.to(torch.float64 if dtype == torch.float64 else torch.float32)
    inputs.compute_expected()
    return inputs


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., Inputs]:
    return build_inputs


@pytest.fixture(scope="session")
def error_of() -> Callable[[Tensor, Tensor], float]:
    return relative_error
