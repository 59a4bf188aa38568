"""Times GPU work with device events, and knows the ceilings of the GPU at hand."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Timing:
    """Microseconds for one call: the median, and half the range between the quartiles."""

    median_us: float
    spread_us: float
    samples: int


def time_gpu(work: Callable[[int], object], samples: int = 30, inputs: int = 1) -> Timing:
    """Calls `work(i)` with i going round `inputs` input sets, so that no set stays in the cache."""
    for i in range(5 + inputs):
        work(i % inputs)
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work(0)
    end.record()
    end.synchronize()
    calls = max(1, min(200, int(20_000 / max(start.elapsed_time(end) * 1000, 1))))  # about 20 ms a sample
    times = []
    for _ in range(samples):
        start.record()
        for i in range(calls):
            work(i % inputs)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / calls)
    quartiles = statistics.quantiles(times, n=4)
    return Timing(statistics.median(times), (quartiles[2] - quartiles[0]) / 2, samples)


def time_graph(work: Callable[[int], object], samples: int = 30, inputs: int = 1) -> Timing:
    """The same from CUDA graphs: what the GPU takes without the host's launches in between."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(3):
            work(i % inputs)
    torch.cuda.current_stream().wait_stream(side)
    graphs, kept = [], []
    for i in range(inputs):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept.append(work(i))  # its memory must outlive the replays
        graphs.append(graph)
    return time_gpu(lambda i: graphs[i].replay(), samples, inputs)


def copy_bandwidth() -> float:
    """Bytes read and written per second by a large device-to-device copy."""
    source = torch.randn(512 * 2**20, device="cuda")  # 2 GiB
    target = torch.empty_like(source)
    timing = time_gpu(lambda _: target.copy_(source), samples=10)
    return 2 * source.numel() * 4 / (timing.median_us * 1e-6)


def sm_clock_hz() -> float | None:
    """The SM clock while busy, or None where nvidia-smi does not tell."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    a = torch.randn(4096, 4096, device="cuda")
    for _ in range(50):
        a @ a
    query = [
        smi,
        "--query-gpu=clocks.sm",
        "--format=csv,noheader,nounits",
        f"--id={torch.cuda.current_device()}",
    ]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    torch.cuda.synchronize()
    return float(done.stdout) * 1e6 if done.returncode == 0 and re.fullmatch(r"\d+\s*", done.stdout) else None


def instructions_per_warp(library: Path, kernel: str, arch: str) -> int | None:
    """Instructions that a warp issues in `kernel` (a pattern of its mangled name), from its machine code.

    Loops count twice: the 16-bit forward goes round its loop of 8 points twice, the float32 one has none.
    None without cuobjdump or without the kernel.
    """
    tool = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    if tool is None:
        return None
    command = [tool, "--dump-sass", "--gpu-architecture", f"sm_{arch}", str(library)]
    dump = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for block in dump.split("Function : ")[1:]:
        if re.match(kernel, block):
            return count_instructions(block)
    return None


def count_instructions(sass: str) -> int:
    """Instructions of one function up to its last EXIT; those inside loops count twice."""
    lines = [(int(a, 16), text) for a, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", sass)]
    last = max((address for address, text in lines if "EXIT" in text), default=0)
    loops = []
    for address, text in lines:
        target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if target and int(target.group(1), 16) < address <= last:
            loops.append((int(target.group(1), 16), address))
    return sum(
        1 + any(begin <= address <= end for begin, end in loops) for address, _ in lines if address <= last
    )
