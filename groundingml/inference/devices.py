"""Where a detector computes, and in which precision."""

from __future__ import annotations

import torch

_PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(device: str | torch.device) -> torch.device:
    """ "auto" or a device's name -> a device that is there.

    Raises:
        ValueError: unknown name, or CUDA asked for without a usable GPU.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N") from error
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported: use auto, cpu, cuda or cuda:N")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device cuda was asked for, but PyTorch sees no usable GPU: use cpu, or see `groundingml env`"
        )
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, but there are {torch.cuda.device_count()} GPUs")
    return place


def resolve_precision(dtype: str) -> torch.dtype | None:
    """The type to autocast to; None for plain fp32, which "auto" is: boxes and scores then equal the
    references'."""
    if dtype == "auto":
        return None
    if dtype not in _PRECISIONS:
        raise ValueError(f"unknown dtype {dtype!r}: use auto, {', '.join(_PRECISIONS)}")
    return _PRECISIONS[dtype]
