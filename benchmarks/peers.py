"""Measures Grounding DINO tiny on a CPU against other ways to run transformers' model fast.

    python benchmarks/peers.py                                 about 10 minutes on a quiet machine
    python benchmarks/peers.py --sizes 480x640 --peers openvino
    python benchmarks/peers.py --compile-sizes 480x640 800x800 800x1333

Writes benchmarks/results/peers.json (a size that was not measured keeps its last result).

Peers: OpenVINO and ONNX Runtime, both of one ONNX file for each image size (peer_exports.py says what its
export needs), and torch.compile, which compiles for two minutes and so takes part at one size unless
--compile-sizes names more. Equal random weights, batch 1, a prompt of 25 tokens, float32, from pixels and
token ids to logits and boxes, the prompt encoded each time.

First each peer's outputs are compared with transformers' own, which is made to choose the peer's queries
(near-ties otherwise swap some), and ours in the same way; a peer that computes something else is left out,
and the table says so. Then all, and transformers' eager model, take turns in one process on one thread; what
counts is process CPU time, the median with lowest and highest. The C library keeps freed memory for all of
them (`groundingml.memory`); ONNX Runtime and OpenVINO manage their own anyway. Last, it is measured how much
of our time goes into matrix products, which no way of running the network saves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

from end_to_end import machine, now, take_turns
from end_to_end_models import TOKENS, build_models, token_ids

FILE = Path(__file__).parent / "results" / "peers.json"
SIZES = ("480x640", "800x800", "800x1333")
PEERS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "compile": "torch.compile"}
EAGER = "transformers, eager"
OURS = "groundingml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="HEIGHTxWIDTH")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--compile-sizes", nargs="*", default=["480x640"], metavar="HEIGHTxWIDTH")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(**json.loads(arguments.child))))
        return
    document = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": {}}
    for size in arguments.sizes:
        peers = [peer for peer in arguments.peers if peer != "compile" or size in arguments.compile_sizes]
        print(f"measuring at {size}: {', '.join(PEERS[peer] for peer in peers)} ...", flush=True)
        row = start_child({"size": size, "peers": peers, "repetitions": arguments.repetitions})
        document["rows"][size] = {"when": now(), "load_average": round(os.getloadavg()[0], 1), **row}
        document.update(machine=machine(), versions=versions())
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))


def start_child(task: dict[str, Any]) -> dict[str, Any]:
    """Measure one size in a fresh process on one thread."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(task)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"the task {task} failed, see above")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(size: str, peers: list[str], repetitions: int) -> dict[str, Any]:
    """Differences, seconds to prepare, and times of every contestant at one size."""
    import torch
    from peer_exports import INPUTS, WithSelection, eager_with_selection, export_onnx, onnx_runtime, openvino

    from groundingml.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    theirs, ours = build_models()
    height, width = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, height, width, generator=generator)
    ids = token_ids(generator)
    inputs = (pixels, torch.ones(1, height, width, dtype=torch.long), ids, torch.ones_like(ids))

    def ours_with_selection(arguments: tuple[torch.Tensor, ...]) -> Any:
        output = ours(*arguments)
        return output.logits, output.boxes_cxcywh, output.topk_indices

    contestants: dict[str, Callable[[Any], Any]] = {OURS: ours_with_selection}
    prepared: dict[str, float] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "model.onnx"
        if {"openvino", "onnxruntime"} & set(peers):
            export_onnx(theirs, inputs, file)
        for peer in peers:
            cpu = time.process_time()
            if peer == "compile":
                candidate = compiled(theirs, WithSelection(theirs)(*inputs)[2])
                try:
                    candidate(inputs)
                except (RuntimeError, subprocess.SubprocessError, OSError) as error:  # such as no compiler
                    left_out[PEERS[peer]] = str(error).splitlines()[0]
                    continue
                contestants[PEERS[peer]] = candidate
            else:
                contestants[PEERS[peer]] = (openvino if peer == "openvino" else onnx_runtime)(file)
            prepared[PEERS[peer]] = round(time.process_time() - cpu, 1)
        differences = {}
        for name, contestant in list(contestants.items()):
            logits, boxes, chosen = contestant(inputs)
            expected = eager_with_selection(theirs, inputs, chosen)
            logits_off = (logits[..., :TOKENS] - expected[0][..., :TOKENS]).abs().max().item()
            boxes_off = (boxes - expected[1]).abs().max().item()
            differences[name] = {"logits": logits_off, "boxes": boxes_off}
            if logits_off > 1e-3 or boxes_off > 1e-4:
                assert name != OURS, differences[name]
                left_out[name] = f"logits differ by {logits_off:.2g}, boxes by {boxes_off:.2g}"
                del contestants[name]
        contestants[EAGER] = lambda arguments: theirs(**dict(zip(INPUTS, arguments, strict=True)))
        calls = {name: lambda run=run: run(inputs) for name, run in contestants.items()}
        times = take_turns(calls, repetitions)
        products = matrix_products(lambda: ours(*inputs))
    return {
        "prepared_cpu_s": prepared,
        "differences": differences,
        "times": times,
        "left_out": left_out,
        "matrix_products": products,
    }


def matrix_products(run: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds that the linear layers of one run take, and their floating-point operations."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found = {"cpu_s": 0.0, "gflop": 0.0}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            start = time.process_time()
            result = func(*args, **(kwargs or {}))
            if "linear_pointwise" in str(func):
                found["cpu_s"] += time.process_time() - start
                found["gflop"] += 2e-9 * args[0].numel() * args[1].shape[0]
            return result

    with Watch():
        run()
    return found


def compiled(model: Any, chosen: Any) -> Callable[[Any], Any]:
    """transformers' model under torch.compile, as its documentation says: graph breaks are allowed. It cannot
    say which queries it chose, and is compiled with those that it chooses without the compiler."""
    import torch
    from peer_exports import INPUTS

    fast = torch.compile(model)

    def fixed(*_: Any, **__: Any) -> Any:
        return None, chosen

    def run(inputs: Any) -> Any:
        with mock.patch.object(torch, "topk", fixed):
            output = fast(**dict(zip(INPUTS, inputs, strict=True)))
        return output.logits, output.pred_boxes, chosen

    return run


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "transformers", "onnxruntime", "openvino")}


def table(document: dict[str, Any]) -> str:
    """Markdown: a line for each size and contestant."""
    lines = [
        "| image | | CPU s | groundingml is faster by | logits, boxes differ by | CPU s to prepare |",
        "|---|---|---|---|---|---|",
    ]
    for size, row in sorted(document["rows"].items(), key=lambda item: SIZES.index(item[0])):
        ours = row["times"][OURS]["cpu_s"]
        for name, times in row["times"].items():
            off = row["differences"].get(name)
            cells = (
                size,
                name,
                f"{times['cpu_s']:.2f} ({times['lowest']:.2f} to {times['highest']:.2f})",
                "" if name == OURS else f"**{times['cpu_s'] / ours:.2f}x**",
                f"{off['logits']:.0e}, {off['boxes']:.0e}" if off else "",
                f"{row['prepared_cpu_s'][name]:.0f}" if name in row["prepared_cpu_s"] else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"| {size} | {name} | left out: {why} | | | |" for name, why in row["left_out"].items()]
    return "\n".join(lines)


def floor(document: dict[str, Any]) -> str:
    """A line for each size: what of our time is matrix products."""
    lines = []
    for size, row in document["rows"].items():
        if found := row.get("matrix_products"):
            ours = row["times"][OURS]["cpu_s"]
            lines.append(
                f"- {size}: {found['gflop']:.0f} GFLOP in {found['cpu_s']:.2f} s "
                f"({found['gflop'] / found['cpu_s']:.0f} GFLOP/s), {found['cpu_s'] / ours:.0%} of our time"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
