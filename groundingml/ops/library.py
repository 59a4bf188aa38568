"""Loads the compiled ops and knows what they can do."""

from __future__ import annotations

import functools
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from groundingml.ops import registration

_OPS = (
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "ms_deform_attn_from_offsets",
    "ms_deform_attn_from_offsets_backward",
    "modulated_deform_conv",
    "modulated_deform_conv_backward",
)


@dataclass(frozen=True)
class OpsStatus:
    """What `groundingml env` prints about the ops."""

    available: bool
    """Whether the compiled CPU kernels are in use."""
    reason: str | None
    """Why something compiled is missing, or None."""
    remedy: str | None
    """The command that mends it, or None."""
    cuda_archs: tuple[str, ...]
    """Compute capabilities the CUDA kernels were compiled for; empty without CUDA kernels."""
    cpu_capability: str
    """Instruction set of the CPU kernels: "default", "avx2" or "avx512"; "none" without them."""
    build: dict[str, str] = field(default_factory=dict)
    """compiler, flags, torch (headers built against), nvcc, cuda_archs; empty without compiled ops."""


@dataclass(frozen=True)
class _Library:
    device_types: frozenset[str]
    reason: str | None = None
    registrations: object = None  # PyTorch forgets them when this goes away


def status() -> OpsStatus:
    """What is compiled and in use, and if something is missing, why and what to run."""
    if not _LIBRARY.device_types:
        return OpsStatus(False, _LIBRARY.reason, _remedy(), (), "none")
    import groundingml.ops._build as _build

    build = dict(_build.build_info())
    reason = None
    if torch.cuda.is_available() and "cuda" not in _LIBRARY.device_types:
        reason = (
            "the ops were compiled without CUDA kernels: nvcc was not found, or GROUNDINGML_NO_CUDA was set"
        )
    archs = tuple(arch for arch in build["cuda_archs"].split(";") if arch)
    return OpsStatus(True, reason, _remedy() if reason else None, archs, _build.get_cpu_capability(), build)


def has_kernels(device_type: str) -> bool:
    """Whether compiled kernels exist for tensors on this type of device."""
    return device_type in _LIBRARY.device_types


def can_run(tensor: Tensor) -> bool:
    """Whether to call the compiled op; says once, outside of compiled graphs, that the reference is used."""
    if has_kernels(tensor.device.type):
        return True
    if not torch.compiler.is_compiling():
        warn_about_reference(tensor.device.type)
    return False


@functools.cache
def warn_about_reference(device_type: str) -> None:
    """Says once that tensors on this type of device go through the slower PyTorch reference."""
    if not _LIBRARY.device_types:
        return  # said when loading
    remedy = f" To compile them: {_remedy()}" if device_type == "cuda" else ""
    warnings.warn(
        f"groundingml has no compiled kernels for {device_type} tensors; "
        f"the slower PyTorch reference is used.{remedy}",
        RuntimeWarning,
        stacklevel=4,
    )


def _remedy() -> str:
    pip = f"{sys.executable} -m pip install --no-build-isolation"
    root = Path(__file__).resolve().parents[2]
    if (root / "setup.py").exists():
        return f"{pip} --editable {root}"
    return f"{pip} --force-reinstall --no-deps SOURCE_FOLDER_OF_GROUNDINGML"


def _load() -> _Library:
    path = Path(__file__).with_name("_library.so")
    reason = None
    if not path.exists():
        reason = f"{path} does not exist: groundingml was installed without compiling it"
    else:
        try:
            torch.ops.load_library(path)
            import groundingml.ops._build as _build
        except (OSError, ImportError) as error:
            detail = error.__cause__ or error  # PyTorch wraps the loader's own message
            reason = f"they do not load with PyTorch {torch.__version__} (2.10 or newer is needed): {detail}"
        else:
            _build.get_cpu_capability()  # raises when GROUNDINGML_CPU_CAPABILITY is wrong
            return _Library(_device_types(), None, registration.register())
    warnings.warn(
        f"groundingml's compiled ops are missing, so the slower PyTorch reference is used. Reason: {reason}. "
        f"To mend it: {_remedy()}",
        RuntimeWarning,
        stacklevel=2,
    )
    return _Library(frozenset(), reason)


def _device_types() -> frozenset[str]:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    keys = {"cpu": "CPU", "cuda": "CUDA"}
    compiled = {device for device, key in keys.items() if all(has(f"groundingml::{op}", key) for op in _OPS)}
    return frozenset(compiled | {"meta"})


# At import, as for any extension module: a library loaded at the first call would break a graph being traced.
_LIBRARY = _load()
