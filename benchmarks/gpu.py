"""Builds, tests and measures the CUDA kernels on a GPU machine without network; benchmarks/gpu.sh starts it.

    python benchmarks/gpu.py                       every step, 10 minutes at most (--minutes says how many)
    python benchmarks/gpu.py --quick               fewer sizes and samples
    python benchmarks/gpu.py --steps build op      some steps
    python benchmarks/gpu.py --dry-run             without a GPU: what would run, and whether all compiles

Steps: `build` installs this tree by pip into build/gpu/site (the environment itself is left alone), `test`
runs the tests marked gpu, `sanitize` some of them under compute-sanitizer, `op` and `model` measure
(gpu_op.py, gpu_model.py), `report` writes benchmarks/results/gpu.md from the JSON files beside it. A failed
step is reported and the next one still runs; the exit code is then 1. Each step has its share of the time
and is ended when that is up; what was measured until then is in the report. Needs PyTorch with CUDA, nvcc,
pytest, ninja and pybind11; transformers for `model`. Wheels in build/gpu/wheels (deformops) are installed for
the measurements.

To try the kernels' two knobs (geometry.cuh, forward.cuh): rm -rf build/native, then
    NVCC_APPEND_FLAGS=-DGML_TILED_QUERIES=0 python benchmarks/gpu.py --steps build op --results elsewhere
    NVCC_APPEND_FLAGS=-DGML_FORWARD_BLOCKS=5 ...
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_baseline.original import build as build_baseline

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "gpu" / "site"
WHEELS = ROOT / "build" / "gpu" / "wheels"
STEPS = ("build", "test", "op", "model", "sanitize", "report")
SHARES = {"build": 0.35, "test": 0.25, "op": 0.2, "model": 0.35, "sanitize": 0.15, "report": 0.1}
"""Of the whole time, at most; steps that end early leave theirs to the later ones. In order of worth."""
TIMED_OUT = 124
SANITIZED = "(test_output_and_gradients and (decoder or channels) and float32) or not_numbers"


@dataclass
class Run:
    """Options, and how to start things."""

    results: Path
    quick: bool
    dry_run: bool
    arch: str  # of the GPU, such as "90"
    seconds: float = 570.0  # for all steps together
    started: float = field(default_factory=time.monotonic)
    step_ends: float = float("inf")

    def begin(self, step: str) -> float:
        """Seconds that a step may take: its share of the whole, and no more than is left."""
        now = time.monotonic()
        allowed = max(5.0, min(SHARES[step] * self.seconds, self.started + self.seconds - now))
        self.step_ends = now + allowed
        return allowed

    def command(self, command: list[str | Path], **environment: str) -> int:
        words = [str(word) for word in command]
        print("$", shlex.join([*(f"{k}={v}" for k, v in environment.items()), *words]), flush=True)
        if self.dry_run:
            return 0
        left = None if self.step_ends == float("inf") else max(1.0, self.step_ends - time.monotonic())
        # In a group of its own, so that what it has started ends with it.
        process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True)
        try:
            return process.wait(left)
        except subprocess.TimeoutExpired:
            print("out of time", flush=True)
            return TIMED_OUT
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def python(self, *arguments: str | Path, before: tuple[str, ...] = (), **environment: str) -> int:
        """Runs Python with the freshly built package on its path, and not the folder we stand in."""
        folders = [str(SITE), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(filter(None, folders))
        command = [*before, sys.executable, *arguments]
        return self.command(command, PYTHONPATH=path, PYTHONSAFEPATH="1", **environment)

    def measure(self, name: str) -> int:
        quick = ["--quick"] if self.quick else []
        # It is asked to end by itself in time for the last thing it has begun.
        left = min(600.0, 0.8 * (self.step_ends - time.monotonic()))
        out = self.results / f"{name}.json"
        return self.python(f"benchmarks/{name}.py", "--out", out, "--seconds", f"{left:.0f}", *quick)


def build(run: Run) -> int:
    dotted = f"{run.arch[:-1]}.{run.arch[-1]}"
    archs = os.environ.get("GROUNDINGML_CUDA_ARCHS", dotted)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
    ]
    command = [*pip, "--upgrade", "--target", SITE, ROOT]
    code = run.command(command, GROUNDINGML_CUDA_ARCHS=archs)
    if wheels := sorted(WHEELS.glob("*.whl")):
        run.command([*pip, "--upgrade", "--target", SITE, *wheels])  # without them, they are left out
    check = "import sys; from groundingml import ops; s = ops.status(); print(s); sys.exit(not s.cuda_archs)"
    return code or run.python("-c", check)


def test(run: Run) -> int:
    marked = "gpu and not slow" if run.quick else "gpu"
    # Only files with such tests: others may import what this machine lacks.
    texts = {path: path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    files = [path.relative_to(ROOT) for path, text in texts.items() if "pytest.mark.gpu" in text]
    return run.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, *files)


def sanitize(run: Run) -> int:
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None and not run.dry_run:
        print("left out: compute-sanitizer was not found")
        return 0
    before = (tool or "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9")
    tests = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        "-k",
        SANITIZED,
        "tests/cuda/test_gpu_op.py",
    )
    # without PyTorch's own memory pool, every tensor is an allocation whose end the tool knows
    return run.python(*tests, before=before, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def report(run: Run) -> int:
    target = run.results / "gpu.md"
    print("writes", target)
    if run.dry_run:
        return 0
    files = {name: run.results / f"{name}.json" for name in ("gpu_op", "gpu_model")}
    found = {name: json.loads(path.read_text()) for name, path in files.items() if path.is_file()}
    if not found:
        print("nothing was measured")
        return 1
    target.write_text(render(found, machine()))
    return 0


def machine() -> dict[str, str]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    smi = shutil.which("nvidia-smi")
    query = [smi or "", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = (
        subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        if smi
        else "unknown"
    )
    return {
        "date": datetime.date.today().isoformat(),
        "GPU": f"{properties.name}, {properties.multi_processor_count} SMs",
        "driver": driver,
        "PyTorch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "Python": platform.python_version(),
    }


def render(found: dict[str, dict[str, Any]], about: dict[str, str]) -> str:
    """The report in Markdown, from what gpu_op.py and gpu_model.py wrote."""
    lines = ["# On a GPU", "", *(f"- {name}: {text}" for name, text in about.items()), ""]
    if "gpu_op" in found:
        lines += render_op(found["gpu_op"])
    if "gpu_model" in found:
        lines += render_model(found["gpu_model"])
    return "\n".join(lines) + "\n"


def render_op(results: dict[str, Any]) -> list[str]:
    lines = [
        "## The op",
        "",
        "Microseconds a call, median ± half the range between the quartiles. Floors: see gpu_op.py.",
        "",
    ]
    for floor in results["floors"]:
        key = (floor["shape"], floor["batch"], floor["dtype"])
        rows = [row for row in results["rows"] if (row["shape"], row["batch"], row["dtype"]) == key]
        limits = ", ".join(
            f"{n.removesuffix('_us')} {floor[n]:.1f}"
            for n in ("bytes_us", "gather_us", "issue_us")
            if n in floor
        )
        lines += [f"### {key[0]}, batch {key[1]}, {key[2]}", "", f"Floors of the forward (us): {limits}", ""]
        lines += ["| | forward | in a graph | error | backward | in a graph |", "|---|---|---|---|---|---|"]
        for name in dict.fromkeys(row["contestant"] for row in rows):
            by_mode = {row["mode"]: row for row in rows if row["contestant"] == name}
            forward, backward = by_mode.get("forward", {}), by_mode.get("backward", {})
            error = f"{forward['error']:.1e}" if "error" in forward else ""
            lines.append(f"| {name} | {cells(forward, 'us')} | {error} | {cells(backward, 'us')} |")
        lines.append("")
    return lines


def cells(row: dict[str, Any], unit: str) -> str:
    """Two columns: started one by one, and from a CUDA graph."""
    if "left_out" in row:
        return f"left out: {row['left_out']} | "
    eager = f"{row[unit]:.1f} ± {row[f'spread_{unit}']:.1f}" if unit in row else ""
    graph = (
        f"{row[f'graph_{unit}']:.1f} ± {row[f'graph_spread_{unit}']:.1f}" if f"graph_{unit}" in row else ""
    )
    return f"{eager} | {graph}"


def render_model(results: dict[str, Any]) -> list[str]:
    difference = ", ".join(f"{name} {value:.1e}" for name, value in results["difference"].items())
    lines = ["## Grounding DINO tiny at 800x1333, pixels to boxes", ""]
    lines += [f"Largest differences from transformers in float32, top-k injected: {difference}.", ""]
    lowest = {(floor["batch"], floor["dtype"]): floor for floor in results.get("floors", [])}
    lines += [
        "| batch | dtype | | ms | ms an image | x the floor of products | of bytes | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        head = f"| {row['batch']} | {row['dtype']} | {row['contestant']} "
        if "left_out" in row:
            lines.append(f"{head}| left out: {row['left_out']} | | | | |")
            continue
        floor = lowest.get((row["batch"], row["dtype"]), {})
        over = (f"{row['ms'] / floor[k]:.1f}" if k in floor else "" for k in ("products_ms", "bytes_ms"))
        cells_of_row = (
            f"{row['ms']:.1f} ± {row['spread_ms']:.1f}",
            f"{row['ms'] / row['batch']:.1f}",
            *over,
            f"{row['peak_gib']:.1f}",
        )
        lines.append(f"{head}| {' | '.join(cells_of_row)} |")
    return [*lines, ""]


def check_here(run: Run) -> int:
    """What can be checked without a GPU: that the baseline compiles, and that the kernels use no stack."""
    print("\n== without a GPU: does everything compile?", flush=True)
    library = build_baseline(ROOT / "build" / "gpu", run.arch)
    print("compiled", library)
    gate = [sys.executable, str(ROOT / "csrc" / "msda" / "cuda" / "check_resources.py"), "--archs", run.arch]
    return subprocess.run(gate, check=False).returncode


def find_arch() -> str | None:
    """The GPU's compute capability, or None without a GPU."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return "{}{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="default: all")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all steps together (default: 9.5)")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and samples, no slow tests")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands and check that all compiles"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder to write to"
    )
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    arch = find_arch()
    if arch is None and not options.dry_run:
        print(
            "No GPU: torch.cuda.is_available() is false. --dry-run shows and checks what would run.",
            file=sys.stderr,
        )
        return 2
    results = options.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    run = Run(results, options.quick, options.dry_run, arch or "90", 60 * options.minutes)
    steps: dict[str, Callable[[], int]] = {
        "build": lambda: build(run),
        "test": lambda: test(run),
        "op": lambda: run.measure("gpu_op"),
        "model": lambda: run.measure("gpu_model"),
        "sanitize": lambda: sanitize(run),
        "report": lambda: report(run),
    }
    codes = {}
    for name in STEPS:
        if name not in options.steps:
            continue
        print(f"\n== {name}, {run.begin(name):.0f} s at most", flush=True)
        started = time.monotonic()
        codes[name] = steps[name]()
        outcome = "done" if codes[name] == 0 else f"FAILED ({codes[name]})"
        print(f"== {name}: {outcome} in {time.monotonic() - started:.0f} s", flush=True)
        if name == "build" and codes[name] != 0:
            break  # nothing to test or measure
    if options.dry_run:
        codes["compile check"] = check_here(run)
    failed = [name for name, code in codes.items() if code != 0]
    print("\nfailed: " + ", ".join(failed) if failed else "\nall steps done")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
