"""What is trained and how fast: frozen parts, learning rates by part, warm-up and step drops, averaged
weights."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def freeze(model: nn.Module, prefixes: Sequence[str]) -> list[nn.Module]:
    """Let gradients reach every parameter but those under the given prefixes; return the frozen modules.

    A prefix is a dotted name of a part ("backbone", "encoder.layers.0") or of a parameter. A prefix that
    names nothing raises ValueError: a typing mistake would otherwise train what was meant to be kept.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(_under(name, prefix) for name in names):
            parts = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise ValueError(
                f"cannot freeze {prefix!r}: no parameter has that prefix. The model's parts: {parts}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(_under(name, prefix) for prefix in prefixes))
    return [module for name, module in model.named_modules() if name in prefixes]


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, factors: Mapping[str, float]
) -> list[dict[str, object]]:
    """AdamW's groups: each trainable parameter once, at ``learning_rate`` times the factor of its longest
    prefix.

    factors: prefix -> factor, for example {"backbone": 0.1}. Norms, biases and other one-dimensional
    parameters, and embeddings, are not decayed.
    """
    for prefix in factors:
        if not any(_under(name, prefix) for name, _ in model.named_parameters()):
            raise ValueError(f"a learning-rate factor is given for {prefix!r}, which names no parameter")
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        longest = max((p for p in factors if _under(name, p)), key=len, default=None)
        factor = 1.0 if longest is None else factors[longest]
        decay = 0.0 if parameter.ndim <= 1 or id(parameter) in embeddings else weight_decay
        groups.setdefault((factor, decay), []).append(parameter)
    if not groups:
        raise ValueError("nothing is left to train: every parameter is frozen")
    return [
        {"params": parameters, "lr": learning_rate * factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def learning_rate_factor(
    step: int,
    warmup_steps: int,
    drop_steps: Sequence[int],
    drop_factor: float,
    cosine_steps: int | None = None,
) -> float:
    """The schedule: linear from 1/warmup to 1 over the warm-up, then times drop_factor at each drop step.

    step: optimiser steps already done, so the first step is 0. cosine_steps: the run's length, over which the
    rate also falls along half a cosine, to a fiftieth.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    factor = warmup * math.pow(drop_factor, sum(step >= drop for drop in drop_steps))
    if cosine_steps:
        factor *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(step / cosine_steps, 1.0)))
    return factor


class AveragedWeights:
    """An exponential moving average of a model's trainable parameters (other state is the model's own).

    The decay grows with the number of updates, min(decay, (1 + n) / (10 + n)), so that short runs are not
    averaged with their random beginning.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in model.named_parameters():
            if name in self.average:
                self.average[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the average; call it again to put them back."""
        for name, parameter in model.named_parameters():
            if name in self.average:
                current = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name] = current

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        average = state["average"]
        updates = state["updates"]
        if (
            not isinstance(average, dict)
            or not isinstance(updates, int)
            or average.keys() != self.average.keys()
        ):
            raise ValueError(
                "the averaged weights of the checkpoint do not belong to this model and its frozen parts"
            )
        self.updates = updates
        for name, value in average.items():
            self.average[name].copy_(value)


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
