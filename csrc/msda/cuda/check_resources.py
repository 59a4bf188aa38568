#!/usr/bin/env python3
"""Compiles the CUDA kernels for sm_80 and sm_90 and fails if any of them uses stack or spills registers.

    python csrc/msda/cuda/check_resources.py [--archs 80 90] [--jobs N] [--verbose]

A local array that the compiler cannot keep in registers costs more than the arithmetic around it, and nothing
in a test of results would show it. Needs nvcc, no GPU and no PyTorch. Leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2]
SOURCES = tuple(
    path for path in sorted(CSRC.glob("*/cuda/*.cu")) if path.name != "register.cu"
)  # it has no kernels


@dataclass(frozen=True)
class Kernel:
    """What ptxas says about one kernel on one architecture."""

    name: str  # mangled
    arch: str
    registers: int
    stack: int  # bytes
    spills: int  # bytes stored and loaded

    @property
    def clean(self) -> bool:
        return self.stack == 0 and self.spills == 0


def parse(report: str) -> list[Kernel]:
    """Reads the output of `nvcc -Xptxas -v`.

    Raises:
        ValueError: a kernel was compiled of which the report lacks the numbers.
    """
    kernels, blocks = [], re.split(r"Compiling entry function '", report)[1:]
    for block in blocks:
        head = re.match(r"(\w+)' for 'sm_(\w+)'", block)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", block)
        registers = re.search(r"Used (\d+) registers", block)
        if head is None or frame is None or registers is None:
            raise ValueError(f"cannot read this report of ptxas:\n{block}")
        stack, stores, loads = map(int, frame.groups())
        kernels.append(Kernel(head.group(1), head.group(2), int(registers.group(1)), stack, stores + loads))
    return kernels


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which(f"{home}/bin/nvcc") or shutil.which("nvcc")


def compile_source(nvcc: str, source: Path, archs: list[str], folder: Path) -> list[Kernel]:
    targets = [flag for arch in archs for flag in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
    output = str(folder / f"{source.stem}.o")
    command = [nvcc, "-std=c++17", "-O3", *targets, "-Xptxas", "-v", "-c", str(source), "-o", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed on {source.name}:\n{done.stderr or done.stdout}")
    return parse(done.stderr + done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=["80", "90"], metavar="NN", help="compute capabilities")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--verbose", action="store_true", help="print every kernel")
    options = parser.parse_args()

    nvcc = find_nvcc()
    if nvcc is None:
        print("check_resources: no nvcc found. Install the CUDA toolkit, or set CUDA_HOME.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        found = pool.map(lambda source: compile_source(nvcc, source, options.archs, Path(folder)), SOURCES)
        try:
            kernels = [kernel for kernels in found for kernel in kernels]
        except (RuntimeError, ValueError) as error:
            print(f"check_resources: {error}", file=sys.stderr)
            return 2

    bad = [kernel for kernel in kernels if not kernel.clean]
    for kernel in kernels if options.verbose else bad:
        numbers = f"{kernel.registers:3} registers {kernel.stack:4} B stack {kernel.spills:4} B spilled"
        print(f"sm_{kernel.arch} {numbers}  {kernel.name}")
    for arch in options.archs:
        of_arch = [kernel for kernel in kernels if kernel.arch == arch]
        if not of_arch:
            print(f"check_resources: no kernels were compiled for sm_{arch}", file=sys.stderr)
            return 2
        most = max(kernel.registers for kernel in of_arch)
        dirty = sum(not kernel.clean for kernel in of_arch)
        print(f"sm_{arch}: {len(of_arch)} kernels, at most {most} registers, {dirty} with stack or spills")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
