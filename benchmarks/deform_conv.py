"""Measures modulated deformable convolution on this CPU against torchvision's.

    python benchmarks/deform_conv.py --torchvision FOLDER     writes benchmarks/results/deform_conv.json
    python benchmarks/deform_conv.py --quick                  fewer repetitions, nothing written

Shapes are GLIP's at 800x1333: 256 channels, 3x3, the pyramid's levels. Offsets of sigma 1 pixel.

torchvision's binary from PyPI is tied to one PyTorch and to its CUDA libraries, so it does not import beside
a CPU-only PyTorch. Its CPU kernel runs there all the same, and that is what --torchvision does: FOLDER is the
unpacked wheel of the release made for this PyTorch (`pip download --no-deps torchvision==0.28.0` for 2.13.0,
then unzip), its bundled CUDA runtime is loaded, and names of CUDA functions, which nothing here calls, are
satisfied by empty stand-ins (compiled with cc). With an installed torchvision that imports, leave it out.

Contestants take turns within one run, and what is compared is process CPU time: the median, and half the
range between the quartiles.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ops import processor
from torch import Tensor

from groundingml import ops

RESULTS = Path(__file__).parent / "results" / "deform_conv.json"
CHANNELS = 256
LEVELS = {"P3": (100, 167), "P4": (50, 84), "P5": (25, 42)}


def load_torchvision(folder: Path | None) -> None:
    """Makes `torch.ops.torchvision.deform_conv2d` available."""
    if folder is None:
        import torchvision  # noqa: F401

        return
    extension = folder / "torchvision" / "_C.so"
    (runtime,) = (folder / "torchvision.libs").glob("libcudart*")
    missing = _symbols(extension, "--undefined-only")
    here = Path(torch.__file__).parent / "lib"
    for library in (here / "libc10.so", here / "libtorch_cpu.so", here / "libtorch_python.so", runtime):
        missing -= _symbols(library, "--defined-only")
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "stand_ins.c"
        names = sorted(name for name in missing if "cuda" in name.lower())
        source.write_text(
            "".join(f'char stand_in_{i}[4096] __asm__("{name}");\n' for i, name in enumerate(names))
        )
        for name in ("libc10_cuda.so", "libtorch_cuda.so"):
            path = f"{temporary}/{name}"
            subprocess.run(
                ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source), "-o", path], check=True
            )
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(runtime), ctypes.RTLD_GLOBAL)
        torch.ops.load_library(extension)


def _symbols(library: Path, which: str) -> set[str]:
    listing = subprocess.run(
        ["nm", "-D", which, str(library)], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1].split("@")[0] for line in listing.splitlines() if line.strip()}


def contestants(
    x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, mask: Tensor
) -> dict[str, dict[str, Callable[[], object]]]:
    grad_output = torch.randn_like(x)
    ours, theirs = torch.ops.groundingml, torch.ops.torchvision
    geometry = (1, 1, 1, 1, 1, 1, 1, 1, True)  # stride, padding, dilation in both directions, groups, mask

    def our_forward() -> Tensor:
        return ops.modulated_deform_conv(x, weight, bias, offsets, mask, 1, 1)

    def their_forward() -> Tensor:
        result: Tensor = theirs.deform_conv2d(x, weight, offsets, mask, bias, *geometry)
        return result

    def our_backward() -> object:
        return ours.modulated_deform_conv_backward(
            grad_output, x, weight, offsets, mask, 1, 1, 1, False
        ), grad_output.sum((0, 2, 3))

    def their_backward() -> object:
        return theirs._deform_conv2d_backward(grad_output, x, weight, offsets, mask, bias, *geometry)

    difference = float((our_forward() - their_forward()).abs().max())
    if difference > 1e-3:
        raise SystemExit(f"the two do not agree: {difference}")
    return {
        "forward": {"groundingml": our_forward, "torchvision": their_forward},
        "backward": {"groundingml": our_backward, "torchvision": their_backward},
    }


def measure(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repetitions + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:  # the first is for warming up
                times[name].append(1000 * (time.process_time() - start))
    return times


def section(document: dict[str, Any]) -> str:
    """What benchmarks/README.md says about it."""
    times = {(row["level"], row["mode"], row["contestant"]): row["cpu_ms"] for row in document["rows"]}
    lines = [
        "## Modulated deformable convolution on a CPU",
        "`benchmarks/deform_conv.py`. GLIP's shapes at 800x1333: 256 channels, 3x3, float32, batch 1, one "
        "thread; process CPU time. The peer is `torchvision.ops.deform_conv2d`, its own binary from PyPI in "
        "the same process.",
        f"{document['machine']['processor']}; torch {document['torch']}; {document['date']}",
        "| map | | groundingml | torchvision | times faster |\n|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        if row["contestant"] == "groundingml":
            theirs = times[row["level"], row["mode"], "torchvision"]
            height, width = row["size"]
            lines[-1] += (
                f"\n| {row['level']}, {height}x{width} | {row['mode']} | {row['cpu_ms']:.0f} ms "
                f"| {theirs:.0f} ms | {theirs / row['cpu_ms']:.1f} |"
            )
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torchvision", type=Path, metavar="FOLDER", help="an unpacked wheel of torchvision")
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing written")
    options = parser.parse_args()
    load_torchvision(options.torchvision)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for level, (height, width) in LEVELS.items():
        tensors = (
            torch.randn(1, CHANNELS, height, width),
            torch.randn(CHANNELS, CHANNELS, 3, 3) / 48,
            torch.randn(CHANNELS),
            torch.randn(1, 18, height, width),
            torch.rand(1, 9, height, width),
        )
        for mode, calls in contestants(*tensors).items():
            times = measure(calls, 3 if options.quick else 9)
            medians = {name: statistics.median(values) for name, values in times.items()}
            for name, values in times.items():
                low, _, high = statistics.quantiles(values, n=4)
                row = {"level": level, "size": [height, width], "mode": mode, "contestant": name}
                rows.append(row | {"cpu_ms": medians[name], "cpu_spread_ms": (high - low) / 2})
            ratio = medians["torchvision"] / medians["groundingml"]
            print(
                f"{level} {height}x{width} {mode:8}: {medians['groundingml']:7.1f} ms, "
                f"torchvision {medians['torchvision']:7.1f} ms, {ratio:.1f} times faster"
            )
    if not options.quick:
        document = {
            "machine": {"processor": processor(), "load_average": os.getloadavg()},
            "torch": torch.__version__,
            "date": str(datetime.date.today()),
            "threads": 1,
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
