"""How much more this machine does with all of its cores than with one: what no program can beat.

    python benchmarks/cores.py       a minute on a quiet machine; writes benchmarks/results/cores.json

A process for each core repeats one thing for a while, alone or all at the same time:

arithmetic     a product of matrices that fit into a core's own cache
memory         a copy of 256 MiB
shared cache   sums of 16 MiB read in random order, which live in the cache that cores share

"Cores" of a virtual machine may be the two threads of one real core, and cores share caches, memory and a
clock that falls when all of them work. Read the factors of benchmarks/ops.py and bulk.py against these.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "results" / "cores.json"
KINDS = ("arithmetic", "memory", "shared cache")


def make(kind: str) -> Callable[[], object]:
    """What to repeat; all its memory is allocated here."""
    import torch

    torch.set_num_threads(1)
    if kind == "arithmetic":
        a = torch.randn(192, 192)
        product = torch.empty_like(a)
        return lambda: [torch.mm(a, a, out=product) for _ in range(50)]
    if kind == "memory":
        source = torch.zeros(64 << 20)
        target = torch.zeros(64 << 20)
        return lambda: target.copy_(source)
    table = torch.randn(16 << 14, 16)  # rows of a cache line, 16 MiB
    order = torch.randperm(len(table))
    total = torch.empty(len(table), 16)
    return lambda: torch.index_select(table, 0, order, out=total)


def work(kind: str, core: int, begin: Any, seconds: float, results: Any) -> None:
    """Repetitions a second of one process on one core."""
    os.sched_setaffinity(0, {core})
    repeat = make(kind)
    for _ in range(3):
        repeat()
    begin.wait()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        repeat()
        count += 1
    results.put(count / (time.perf_counter() - started))


def rate(kind: str, cores: list[int], seconds: float) -> float:
    """Repetitions a second of all processes together."""
    context = multiprocessing.get_context("spawn")
    begin, results = context.Barrier(len(cores)), context.Queue()
    crew = [context.Process(target=work, args=(kind, core, begin, seconds, results)) for core in cores]
    for process in crew:
        process.start()
    total = sum(results.get(timeout=120) for _ in crew)
    for process in crew:
        process.join()
    return float(total)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--out", type=Path, default=FILE)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    cores = sorted(os.sched_getaffinity(0))
    factors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    before = os.getloadavg()[0]
    for _ in range(arguments.rounds):
        for kind in KINDS:
            alone = statistics.mean(rate(kind, [core], arguments.seconds) for core in cores)
            factors[kind].append(rate(kind, cores, arguments.seconds) / alone)
    document = {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "cores": len(cores),
        "load_average": round(before, 1),
        "factors": {
            kind: {"median": statistics.median(all_), "lowest": min(all_), "highest": max(all_)}
            for kind, all_ in factors.items()
        },
    }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(section(document))


def section(document: dict[str, Any]) -> str:
    """The part of benchmarks/README.md."""
    lines = ["| all cores do ... times the work of one | median | lowest to highest |", "|---|---|---|"]
    for kind, found in document["factors"].items():
        lines.append(f"| {kind} | {found['median']:.2f} | {found['lowest']:.2f} to {found['highest']:.2f} |")
    return "\n\n".join(
        [
            "## What more cores can bring",
            f"`benchmarks/cores.py`: independent processes on {document['cores']} cores, by the clock; no "
            "program scales better here. Arithmetic in a core's own cache, copies of large memory, and reads "
            "in random order of what the shared cache holds, which is what deformable attention does.",
            f"Load average {document['load_average']} before; {document['when']}",
            "\n".join(lines),
        ]
    )


if __name__ == "__main__":
    main()
