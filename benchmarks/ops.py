"""Measures the compiled multi-scale deformable attention on this CPU against what one would use otherwise.

    python benchmarks/ops.py                 every table, a few minutes; writes benchmarks/results/ops.json
    python benchmarks/ops.py --quick         one thread, batch 1, few repetitions
    python benchmarks/ops.py --shapes decoder --capabilities avx2 --threads 1

Peers: transformers' `MultiScaleDeformableAttention` and, where it is installed, `torch-ms-deform-attn` 0.1.1
(`pip install --no-build-isolation --no-binary torch-ms-deform-attn torch-ms-deform-attn==0.1.1`).

Shapes are Grounding DINO's at 800x1333: 8 heads of 32 channels, 4 levels, 4 points, float32. Encoder: one
query for each of 22,223 pixels, offsets of sigma 4 pixels around it.
Decoder: 900 queries, sigma 0.08 of the image. "bfloat16 value": value, its gradient and the output stored so.

Machines are shared, so what is compared is process CPU time, and all contestants take turns within one run.
A turn is two calls in a row, of which the second is timed: a network calls the op layer after layer, and what
the first call pays for caches and memory that others used meanwhile is not the op's.
Reported: the median, and half the range between the quartiles. Wall time is kept beside it; with several
threads it is what counts, and only a quiet machine gives a true one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from groundingml import ops

RESULTS = Path(__file__).parent / "results" / "ops.json"
LEVELS = [(100, 167), (50, 84), (25, 42), (13, 21)]
ROWS = sum(height * width for height, width in LEVELS)
HEADS, CHANNELS, POINTS = 8, 32, 4
PEERS = ("transformers", "torch-ms-deform-attn")

Op = Callable[[Tensor, Tensor, Tensor], Tensor]  # value, sampling locations, attention weights


@dataclass
class Contestant:
    op: Op
    value_dtype: torch.dtype = torch.float32  # of value, its gradient and the output


@dataclass
class Row:
    """One contestant at one shape; times in milliseconds for one call."""

    shape: str
    batch: int
    mode: str
    threads: int
    contestant: str
    cpu_ms: float
    cpu_spread_ms: float
    wall_ms: float
    repetitions: int


def make_inputs(shape: str, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    sizes = torch.tensor([(width, height) for height, width in LEVELS], dtype=torch.float32)
    if shape == "encoder":
        grids = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
            for h, w in LEVELS
        ]
        centers = torch.cat(grids).expand(batch, -1, -1)
        spread = 4 / sizes[:, None]
    else:
        centers = torch.rand(batch, 900, 2)
        spread = torch.tensor(0.08)
    queries = centers.shape[1]
    noise = torch.randn(batch, queries, HEADS, len(LEVELS), POINTS, 2)
    locations = centers[:, :, None, None, None] + noise * spread
    weights = (
        torch.randn(batch, queries, HEADS, len(LEVELS) * POINTS)
        .softmax(-1)
        .unflatten(-1, (len(LEVELS), POINTS))
    )
    return torch.randn(batch, ROWS, HEADS, CHANNELS), locations, weights


def transformers_op() -> Op:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    module, shapes = MultiScaleDeformableAttention(), torch.tensor(LEVELS)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    return lambda value, locations, weights: module(value, shapes, LEVELS, starts, locations, weights, 64)


def torch_ms_deform_attn_op() -> Op | None:
    try:
        import torch_ms_deform_attn
    except ImportError as error:
        print(f"torch-ms-deform-attn is left out: {str(error).splitlines()[0]}")
        return None
    shapes = torch.tensor(LEVELS)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    call = torch_ms_deform_attn.ms_deform_attn
    return lambda value, locations, weights: call(value, shapes, starts, locations, weights)


def our_op(capability: str) -> Op:
    from groundingml.ops import _build

    def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        _build.set_cpu_capability(capability)
        return ops.ms_deform_attn(value, LEVELS, locations, weights)

    return call


def usable_capabilities() -> list[str]:
    from groundingml.ops import _build

    before, usable = _build.get_cpu_capability(), []
    for name in ("avx512", "avx2", "default"):
        try:
            _build.set_cpu_capability(name)
        except ValueError:
            continue
        usable.append(name)
    _build.set_cpu_capability(before)
    return usable


def measure(
    contestants: dict[str, Contestant],
    shape: str,
    batch: int,
    mode: str,
    threads: int,
    repetitions: int,
) -> list[Row]:
    torch.set_num_threads(threads)
    value, *geometry = make_inputs(shape, batch)
    inputs = {dtype: (value.to(dtype), *geometry) for dtype in (torch.float32, torch.bfloat16)}
    if mode != "forward":
        for tensors in inputs.values():
            for tensor in tensors:
                tensor.requires_grad_()
    grad_output = torch.randn(batch, geometry[0].shape[1], HEADS * CHANNELS)
    grad_outputs = {dtype: grad_output.to(dtype) for dtype in inputs}

    def run(contestant: Contestant) -> Tensor:
        tensors = inputs[contestant.value_dtype]
        output = contestant.op(*tensors)
        if mode != "forward":
            torch.autograd.grad(output, tensors, grad_outputs[contestant.value_dtype])
        return output.detach()

    expected = None
    with torch.set_grad_enabled(mode != "forward"):
        for name, contestant in contestants.items():  # also the warm-up
            output = run(contestant).float()
            expected = output if expected is None else expected
            tolerance = 1e-3 if contestant.value_dtype == torch.float32 else 3e-2
            torch.testing.assert_close(
                output, expected, rtol=tolerance, atol=tolerance, msg=f"{name} computes something else"
            )
        cpu: dict[str, list[float]] = {name: [] for name in contestants}
        wall: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(repetitions):
            for name, contestant in contestants.items():
                run(contestant)
                cpu_start, wall_start = time.process_time(), time.perf_counter()
                run(contestant)
                cpu[name].append((time.process_time() - cpu_start) * 1e3)
                wall[name].append((time.perf_counter() - wall_start) * 1e3)
    rows = []
    for name in contestants:
        quartiles = statistics.quantiles(cpu[name], n=4)
        spread = (quartiles[2] - quartiles[0]) / 2
        median, wall_median = statistics.median(cpu[name]), statistics.median(wall[name])
        rows.append(Row(shape, batch, mode, threads, name, median, spread, wall_median, repetitions))
    return rows


def table(rows: list[Row], time_of: Callable[[Row], float], title: str) -> str:
    """Markdown: a line for each contestant, with how many times faster than each peer it is."""
    groups: dict[tuple[str, int, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.shape, row.batch, row.mode, row.threads), []).append(row)
    lines = [
        f"### {title}",
        "",
        "| shape | mode | threads | op | ms | x transformers | x torch-ms-deform-attn |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for (shape, batch, mode, threads), group in groups.items():
        times = {row.contestant: time_of(row) for row in group}
        for row in group:
            ratios = [f"{times[peer] / times[row.contestant]:.1f}" if peer in times else "" for peer in PEERS]
            spread = f" ± {row.cpu_spread_ms:.1f}" if time_of(row) == row.cpu_ms else ""
            lines.append(
                f"| B{batch} {shape} | {mode} | {threads} | {row.contestant} | {time_of(row):.1f}{spread} | "
                f"{ratios[0]} | {ratios[1]} |"
            )
    return "\n".join(lines)


def scaling(rows: list[Row]) -> str:
    """Markdown: how many times faster each contestant is on all threads than on one, by the clock."""
    walls = {((row.shape, row.batch, row.mode), row.contestant, row.threads): row.wall_ms for row in rows}
    names = list(dict.fromkeys(row.contestant for row in rows))
    most = max(row.threads for row in rows)
    lines = [f"| shape | mode | {' | '.join(names)} |", "|" + "---|" * (2 + len(names))]
    for case in dict.fromkeys(case for case, _, _ in walls):
        shape, batch, mode = case
        factors = [f"{walls[case, name, 1] / walls[case, name, most]:.2f}" for name in names]
        lines.append(f"| B{batch} {shape} | {mode} | {' | '.join(factors)} |")
    return "\n".join(lines)


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    installed = {distribution.name for distribution in metadata.distributions()}
    for name in ("groundingml", *PEERS):
        found[name] = metadata.version(name) if name in installed else "not installed as a package"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one thread, batch 1, few repetitions")
    parser.add_argument("--shapes", nargs="+", default=["encoder", "decoder"], choices=["encoder", "decoder"])
    parser.add_argument(
        "--capabilities", nargs="+", help="avx512, avx2, default (default: all this processor has)"
    )
    parser.add_argument("--threads", nargs="+", type=int, help="default: 1 and all")
    parser.add_argument(
        "--repetitions",
        type=int,
        help="of an encoder, 5 times as many of a decoder (default: 9, or 5 with --quick)",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    status = ops.status()
    if not status.available:
        raise SystemExit(f"The compiled ops are missing: {status.reason}\nTo mend it: {status.remedy}")
    capabilities = arguments.capabilities or usable_capabilities()
    contestants = {"transformers": Contestant(transformers_op())}
    if (peer := torch_ms_deform_attn_op()) is not None:
        contestants["torch-ms-deform-attn"] = Contestant(peer)
    for capability in capabilities:
        contestants[f"groundingml {capability}"] = Contestant(our_op(capability))
    contestants[f"groundingml {capabilities[0]}, bfloat16 value"] = Contestant(
        our_op(capabilities[0]), torch.bfloat16
    )

    processors = len(os.sched_getaffinity(0))
    threads = arguments.threads or ([1] if arguments.quick else sorted({1, processors}))
    encoder_repetitions = arguments.repetitions or (5 if arguments.quick else 9)
    rows: list[Row] = []
    for count in threads:
        for batch in (1,) if arguments.quick else (1, 2):
            for shape in arguments.shapes:
                for mode in ("forward", "forward+backward"):
                    print(f"measuring B{batch} {shape}, {mode}, {count} thread(s) ...", flush=True)
                    repetitions = encoder_repetitions * (1 if shape == "encoder" else 5)
                    rows += measure(contestants, shape, batch, mode, count, repetitions)

    print("\n" + table(rows, lambda row: row.cpu_ms, "Process CPU time") + "\n")
    print(table([row for row in rows if row.threads > 1], lambda row: row.wall_ms, "Wall time") + "\n")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {"processor": processor(), "processors": processors, "load_average": os.getloadavg()},
        "versions": versions(),
        "build": status.build,
        "unit": "milliseconds for one call: medians, and half the range between the quartiles as spread",
        "rows": [asdict(row) for row in rows],
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {arguments.output}; load average {os.getloadavg()[0]:.1f} on {processors} processors")


if __name__ == "__main__":
    main()
