"""Several processes that train one model, started by torchrun; one process is the same with nobody to ask.

Gradients are summed once for each optimiser step, after all of its batches, and losses are divided by numbers
of the whole step. So a step's result does not depend on how its images are split over processes and batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

_PATIENCE = timedelta(hours=6)  # the others wait while the first process evaluates


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and talks."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over the processes."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: list[float]) -> list[float]:
        """The highest of each value over the processes."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def sum_by_name(self, values: Mapping[str, float]) -> dict[str, float]:
        """Values summed by name; a process that had nothing to do may lack names."""
        if self.count == 1:
            return dict(values)
        everyone: list[Mapping[str, float]] = [{}] * self.count
        dist.all_gather_object(everyone, dict(values))
        names = dict.fromkeys(name for part in everyone for name in part)
        return {name: sum(part.get(name, 0.0) for part in everyone) for name in names}

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in all of them. A parameter without one counts as zero."""
        if self.count == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for group in _same_kind(trained):
            flat = torch.cat([p.grad.flatten() for p in group if p.grad is not None])
            dist.all_reduce(flat)
            place = 0
            for parameter in group:
                assert parameter.grad is not None
                parameter.grad.copy_(flat[place : place + parameter.numel()].view_as(parameter))
                place += parameter.numel()

    def share_weights(self, model: nn.Module) -> None:
        """Give everyone the first process's parameters and buffers."""
        if self.count > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, src=0)

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier()

    def _reduce(self, values: list[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            tensor = tensor.cuda()
        dist.all_reduce(tensor, op=operation)
        return tensor.tolist()


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started (told by its environment); just this one without it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """This process's GPU where torchrun started one for each; else the device itself."""
    local = os.environ.get("LOCAL_RANK")
    if str(device) != "cuda" or local is None:
        return device
    return torch.device("cuda", int(local))


def _same_kind(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    yield from kinds.values()
