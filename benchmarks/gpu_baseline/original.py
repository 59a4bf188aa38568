"""Builds and calls the baseline of original.cu. For benchmarks only."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("original.cu")


def build(folder: Path, arch: str) -> Path:
    """Compiles for one compute capability, such as "90".

    Raises:
        RuntimeError: no nvcc, or it failed.
    """
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = shutil.which(f"{home}/bin/nvcc") or shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("the baseline needs nvcc; set CUDA_HOME")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"original_sm{arch}.so"
    command = [
        nvcc,
        "-std=c++17",
        "-O3",
        f"-arch=sm_{arch}",
        "-shared",
        "-Xcompiler=-fPIC",
        "-cudart",
        "static",
    ]
    done = subprocess.run(
        [*command, str(SOURCE), "-o", str(library)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed on {SOURCE.name}:\n{done.stderr}")
    return library


class Original:
    """The original algorithm on CUDA tensors in float32, 32 channels a head."""

    def __init__(self, library: Path, shapes: list[tuple[int, int]]) -> None:
        self.library = ctypes.CDLL(str(library))
        self.shapes = torch.tensor(shapes, device="cuda")
        sizes = self.shapes.prod(1)
        self.starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """value (B, S, M, 32), locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P) -> (B, Q, M*32)."""
        batch, queries, heads = weights.shape[:3]
        output = value.new_empty(batch, queries, heads * value.shape[3])
        self._call(
            "original_forward",
            (value, self.shapes, self.starts, locations, weights),
            weights,
            value,
            (output,),
        )
        return output

    def backward(
        self, grad_output: Tensor, value: Tensor, locations: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        grads = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights)
        inputs = (grad_output, value, self.shapes, self.starts, locations, weights)
        self._call("original_backward", inputs, weights, value, grads)
        return grads

    def _call(
        self,
        name: str,
        inputs: tuple[Tensor, ...],
        weights: Tensor,
        value: Tensor,
        outputs: tuple[Tensor, ...],
    ) -> None:
        batch, queries, heads, levels, points = weights.shape
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in inputs]
        sizes = [ctypes.c_int(n) for n in (batch, value.shape[1], heads, levels, queries, points)]
        results = [ctypes.c_void_p(tensor.data_ptr()) for tensor in outputs]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        error = self.library[name](*pointers, *sizes, *results, stream)
        if error != 0:
            raise RuntimeError(f"{name}: CUDA error {error}")
