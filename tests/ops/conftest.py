"""Inputs for the ops, and the instruction sets this machine can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from groundingml import ops


@dataclass
class Inputs:
    """Arguments of one call. `coordinates` 0: the plain op; 2 or 4: from offsets, with as many."""

    coordinates: int
    value: Tensor
    levels: list[tuple[int, int]]
    geometry: list[Tensor]

    def call(self, module: object = ops) -> Tensor:
        name = "ms_deform_attn_from_offsets" if self.coordinates else "ms_deform_attn"
        return getattr(module, name)(self.value, self.levels, *self.geometry)

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        geometry = [function(tensor) for tensor in self.geometry]
        return Inputs(self.coordinates, function(self.value), self.levels, geometry)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.value, *self.geometry]


def make_inputs(
    coordinates: int = 0,
    levels: tuple[tuple[int, int], ...] = ((7, 9), (4, 5)),
    batch: int = 2,
    queries: int = 13,
    heads: int = 3,
    channels: int = 8,
    points: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Random inputs whose points also fall outside the image; geometry is float32, or float64 like value."""
    generator = torch.Generator().manual_seed(seed)
    geometry_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=geometry_dtype)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=geometry_dtype)

    value = randn(batch, sum(h * w for h, w in levels), heads, channels).to(dtype)
    row = (batch, queries, heads, len(levels), points)
    if coordinates == 0:
        geometry = [rand(*row, 2) * 1.6 - 0.3, randn(*row)]
    else:
        reference = rand(batch, queries, len(levels), coordinates)
        geometry = [reference, randn(*row, 2) * 3, randn(*row).flatten(3)]
    return Inputs(coordinates, value, list(levels), geometry)


@pytest.fixture(name="make_inputs")
def make_inputs_fixture() -> Callable[..., Inputs]:
    return make_inputs


@pytest.fixture
def compiled() -> None:
    """Skips where the ops are not compiled."""
    status = ops.status()
    if not status.available:
        pytest.skip(f"the ops are not compiled: {status.reason}")


@pytest.fixture(params=["default", "avx2", "avx512"])
def cpu_capability(request: pytest.FixtureRequest, compiled: None) -> Iterator[str]:
    """Runs a test with each instruction set in turn."""
    from groundingml.ops import _build

    before = _build.get_cpu_capability()
    try:
        _build.set_cpu_capability(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    _build.set_cpu_capability(before)
