"""Freed memory stays in the process, if wanted."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from groundingml import memory

FAULTS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from groundingml.memory import keep_freed_memory
assert keep_freed_memory() is (sys.argv[1] == "kept")
import torch
def work():
    for _ in range(20):
        torch.ones(25_000_000)  # 100 MB
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults_of(kept: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, "kept" if kept else "returned"],
        env={"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), memory.VARIABLE: "1" if kept else "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pages_are_not_asked_for_again():
    assert faults_of(kept=True) * 10 < faults_of(kept=False)


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory()
