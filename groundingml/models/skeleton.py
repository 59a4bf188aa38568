"""Building a network whose weights come from a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Modules made inside have parameters of the right shapes, without memory or values ("meta" tensors).

    Their random initialisation is left out: on meta tensors it would do nothing either, but only after
    PyTorch has imported its compiler, which takes longer than reading the weights.
    """
    with torch.device("meta"), _NoRandomValues():
        yield


class _NoRandomValues(TorchFunctionMode):
    """Makes random fills of tensors do nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            func = torch.empty
        return func(*args, **kwargs)
