"""What of this machine a process may use: cores and memory, within a container's limits too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def usable_cores() -> list[frozenset[int]]:
    """The physical cores that this process may run on, each as the numbers of its logical processors.

    Where the system does not tell (macOS), one empty set for each processor. A container with less processor
    time than cores gets as many as its time pays for.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [frozenset()] * (os.cpu_count() or 1)
    allowed = os.sched_getaffinity(0)
    cores: dict[str, set[int]] = {}
    for number in sorted(allowed):
        siblings = _read(Path(_TOPOLOGY.format(number))) or str(number)
        cores.setdefault(siblings, set()).add(number)
    quota, _, period = (_read(_CGROUP / "cpu.max") or "max").partition(" ")
    most = max(1, int(quota) // int(period)) if quota.isdigit() and period.isdigit() else len(cores)
    return [frozenset(numbers) for numbers in cores.values()][:most]


def memory_left() -> int | None:
    """Bytes that can still be allocated without swapping, or None where the system does not tell."""
    available = _field(Path("/proc/meminfo"), "MemAvailable:")
    left = [] if available is None else [available * 1024]
    limit = _read(_CGROUP / "memory.max") or "max"
    held = _field(_CGROUP / "memory.stat", "anon")  # cached files count as used there, but give way
    if limit.isdigit() and held is not None:
        left.append(max(0, int(limit) - held))
    return min(left, default=None)


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


def _field(file: Path, name: str) -> int | None:
    for line in (_read(file) or "").splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return None
