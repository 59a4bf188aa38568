"""Measures multi-scale deformable attention on a GPU against what one would use otherwise.

    python benchmarks/gpu_op.py --out results.json [--quick]

Normally started by benchmarks/gpu.py, which builds and tests first. Shapes are Grounding DINO's at 800x1333:
8 heads of 32 channels, 4 levels, 4 points. Encoder: a query for each of 22,223 pixels, offsets of sigma 4
pixels around it. Decoder: 900 queries, sigma 0.08 of the image. Contestants, each checked against float64
before it is timed:

    ours                the compiled op
    ours deterministic  its backward without atomics
    ours fused          from offsets and logits: softmax and locations inside
    ours unfused        the same work by the plain op after PyTorch's softmax and location arithmetic
    original            the algorithm of Deformable DETR's kernels (gpu_baseline/); 16-bit through float32
    reference           plain PyTorch, and compiled by torch.compile
    deformops           its CUDA and Triton kernels, where that package is installed

Floors for each forward: `bytes`, every tensor once through memory at the measured copy bandwidth; `gather`,
all corner reads through the L1 cache at 128 bytes a clock and SM; `issue`, the kernel's instructions at 4 a
clock and SM.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_baseline.original import Original, build
from gpu_baseline.timing import copy_bandwidth, instructions_per_warp, sm_clock_hz, time_gpu, time_graph
from torch import Tensor

from groundingml import ops

LEVELS = [(100, 167), (50, 84), (25, 42), (13, 21)]
ROWS = sum(height * width for height, width in LEVELS)
HEADS, CHANNELS, POINTS = 8, 32, 4
INPUT_SETS = 3  # together larger than the L2 cache
KERNELS = {"float32": "f", "float16": "6__half", "bfloat16": "13__nv_bfloat16"}


@dataclass
class Inputs:
    """One call's tensors on the GPU; geometry in float32."""

    value: Tensor  # (B, S, M, D)
    locations: Tensor  # (B, Q, M, L, P, 2)
    weights: Tensor  # (B, Q, M, L, P)
    reference: Tensor  # (B, Q, L, 2): with `offsets` and `logits`, the same points and weights
    offsets: Tensor
    logits: Tensor
    grad_output: Tensor  # (B, Q, M*D)

    @staticmethod
    def make(shape: str, batch: int, dtype: torch.dtype, seed: int) -> Inputs:
        generator = torch.Generator("cuda").manual_seed(seed)
        if shape == "encoder":
            axes = [[(torch.arange(n, device="cuda") + 0.5) / n for n in size] for size in LEVELS]
            centers = torch.cat([torch.cartesian_prod(y, x).flip(-1) for y, x in axes]).expand(batch, -1, -1)
        else:
            centers = torch.rand(batch, 900, 2, device="cuda", generator=generator)
        queries = centers.shape[1]
        lead = (batch, queries, HEADS, len(LEVELS), POINTS)
        noise = torch.randn(*lead, 2, device="cuda", generator=generator)
        offsets = 4 * noise if shape == "encoder" else 0.08 * noise * level_sizes()[:, None]
        logits = torch.randn(lead, device="cuda", generator=generator)
        reference = centers[:, :, None].expand(-1, -1, len(LEVELS), -1).contiguous()
        value = torch.randn(batch, ROWS, HEADS, CHANNELS, device="cuda", generator=generator).to(dtype)
        grad = torch.randn(batch, queries, HEADS * CHANNELS, device="cuda", generator=generator).to(dtype)
        locations, weights = geometry(reference, offsets, logits)
        return Inputs(value, locations, weights, reference, offsets, logits, grad)


@functools.cache
def level_sizes() -> Tensor:
    """(L, 2) as (width, height), copied to the GPU once: a graph cannot capture such a copy."""
    return torch.tensor([(w, h) for h, w in LEVELS], device="cuda", dtype=torch.float32)


def geometry(reference: Tensor, offsets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Locations and weights, as a layer without the fused op computes them."""
    locations = reference[:, :, None, :, None] + offsets / level_sizes()[:, None]
    return locations, logits.flatten(3).softmax(-1).view(logits.shape)


@dataclass
class Contestant:
    name: str
    forward: Callable[[Inputs], Tensor]
    backward: Callable[[Inputs], object] | None  # all gradients, without the forward
    arguments: tuple[str, ...] = ("value", "locations", "weights")


def autograd_of(
    forward: Callable[[Inputs], Tensor], arguments: tuple[str, ...]
) -> Callable[[Inputs], object]:
    """Backward through autograd, over a graph that is recorded once for each input set."""
    recorded: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def backward(inputs: Inputs) -> object:
        if id(inputs) not in recorded:
            leaves = [getattr(inputs, name).detach().requires_grad_() for name in arguments]
            attached = Inputs(**{**vars(inputs), **dict(zip(arguments, leaves, strict=True))})
            recorded[id(inputs)] = forward(attached), leaves
        output, leaves = recorded[id(inputs)]
        return torch.autograd.grad(output, leaves, inputs.grad_output, retain_graph=True)

    return backward


def contestants(original: Original) -> list[Contestant]:
    flat = [size for level in LEVELS for size in level]
    raw = torch.ops.groundingml
    fused = ("value", "reference", "offsets", "logits")

    def plain(i: Inputs) -> Tensor:
        return ops.ms_deform_attn(i.value, LEVELS, i.locations, i.weights)

    def plain_backward(i: Inputs, *, deterministic: bool) -> object:
        return raw.ms_deform_attn_backward(
            i.grad_output, i.value, flat, i.locations, i.weights, deterministic
        )

    def from_offsets(i: Inputs) -> Tensor:
        return ops.ms_deform_attn_from_offsets(i.value, LEVELS, i.reference, i.offsets, i.logits)

    def from_offsets_backward(i: Inputs) -> object:
        return raw.ms_deform_attn_from_offsets_backward(
            i.grad_output, i.value, flat, i.reference, i.offsets, i.logits, False
        )

    def unfused(i: Inputs) -> Tensor:
        return ops.ms_deform_attn(i.value, LEVELS, *geometry(i.reference, i.offsets, i.logits))

    def of_original(i: Inputs) -> Tensor:
        return original.forward(i.value.float(), i.locations, i.weights).to(i.value.dtype)

    def original_backward(i: Inputs) -> object:
        return original.backward(i.grad_output.float(), i.value.float(), i.locations, i.weights)

    def reference(i: Inputs) -> Tensor:
        return ops.reference.ms_deform_attn(i.value, LEVELS, i.locations, i.weights)

    compiled_op = torch.compile(lambda v, x, w: ops.reference.ms_deform_attn(v, LEVELS, x, w))

    def compiled(i: Inputs) -> Tensor:
        return compiled_op(i.value, i.locations, i.weights)

    plain_arguments = ("value", "locations", "weights")
    found = [
        Contestant("ours", plain, lambda i: plain_backward(i, deterministic=False)),
        Contestant("ours deterministic", plain, lambda i: plain_backward(i, deterministic=True)),
        Contestant("ours fused", from_offsets, from_offsets_backward),
        Contestant("ours unfused", unfused, autograd_of(unfused, fused)),
        Contestant("original", of_original, original_backward),
        Contestant("reference", reference, autograd_of(reference, plain_arguments)),
        Contestant("reference compiled", compiled, autograd_of(compiled, plain_arguments)),
    ]
    return found + deformops_contestants(original)


def deformops_contestants(original: Original) -> list[Contestant]:
    try:
        msda = importlib.import_module("deformops.registry").msda
    except (ImportError, AttributeError) as error:
        print(f"deformops is left out: {error}")
        return []
    found = []
    for backend in ("cuda", "triton"):

        def forward(i: Inputs, backend: str = backend) -> Tensor:
            weights = i.weights.flatten(3).to(i.value.dtype)
            locations = i.locations.to(i.value.dtype)
            return msda(i.value, original.shapes, original.starts, locations, weights, backend=backend)

        backward = autograd_of(forward, ("value", "locations", "weights"))
        found.append(Contestant(f"deformops {backend}", forward, backward))
    return found


def measure(
    shape: str, batch: int, dtype: torch.dtype, samples: int, original: Original
) -> list[dict[str, object]]:
    inputs = [Inputs.make(shape, batch, dtype, seed) for seed in range(INPUT_SETS)]
    first = inputs[0]
    exact = ops.reference.ms_deform_attn(
        first.value.double(), LEVELS, first.locations.double(), first.weights.double()
    )
    rows: list[dict[str, object]] = []
    for contestant in contestants(original):
        row = {
            "shape": shape,
            "batch": batch,
            "dtype": str(dtype).removeprefix("torch."),
            "contestant": contestant.name,
        }
        try:
            error = (contestant.forward(first).double() - exact).norm() / exact.norm()
            rows.append(
                row
                | {"mode": "forward", "error": float(error), **timings(contestant.forward, inputs, samples)}
            )
            if contestant.backward is not None:
                rows.append(row | {"mode": "backward", **timings(contestant.backward, inputs, samples)})
        except (RuntimeError, TypeError, ValueError, NotImplementedError, ImportError) as problem:
            rows.append(
                row
                | {
                    "mode": "forward",
                    "left_out": str(problem).splitlines()[0] if str(problem) else repr(problem),
                }
            )
        for done in rows[-2:]:
            print(done, flush=True)
    return rows


def timings(work: Callable[[Inputs], object], inputs: list[Inputs], samples: int) -> dict[str, object]:
    eager = time_gpu(lambda i: work(inputs[i]), samples, len(inputs))
    result: dict[str, object] = {
        "us": eager.median_us,
        "spread_us": eager.spread_us,
        "samples": eager.samples,
    }
    try:
        graph = time_graph(lambda i: work(inputs[i]), samples, len(inputs))
    except RuntimeError as problem:
        torch.cuda.synchronize()
        return result | {"graph_left_out": str(problem).splitlines()[0]}
    return result | {"graph_us": graph.median_us, "graph_spread_us": graph.spread_us}


def floors(
    shape: str, batch: int, dtype: torch.dtype, bandwidth: float, clock: float | None
) -> dict[str, object]:
    """Microseconds below which no forward of the plain op gets; see the top of this file."""
    properties = torch.cuda.get_device_properties(0)
    size = torch.finfo(dtype).bits // 8
    pairs = batch * (ROWS if shape == "encoder" else 900) * HEADS
    points = pairs * len(LEVELS) * POINTS
    touched = batch * ROWS * HEADS * CHANNELS * size + points * 3 * 4 + pairs * CHANNELS * size
    name = str(dtype).removeprefix("torch.")
    row: dict[str, object] = {
        "shape": shape,
        "batch": batch,
        "dtype": name,
        "bytes_us": touched / bandwidth * 1e6,
    }
    if clock is not None:
        per_second = properties.multi_processor_count * clock
        row["gather_us"] = points * 4 * CHANNELS * size / (128 * per_second) * 1e6
        library = Path(ops.__file__).with_name("_library.so")
        lanes = CHANNELS * size // 16
        mangled = KERNELS[name]
        shape_arguments = (
            rf"{mangled}fjLi\d+ELi{lanes}ELi4ELi4ELb0E"  # geometry in float32, 4 x 4 points, not fused
        )
        kernel = rf"_ZN11groundingml4cuda14forward_kernelINS0_12ForwardShapeI{shape_arguments}"
        arch = "{}{}".format(*torch.cuda.get_device_capability())
        instructions = instructions_per_warp(library, kernel, arch)
        if instructions is not None:
            row["instructions_per_warp"] = instructions
            row["issue_us"] = instructions * pairs * lanes / 32 / (4 * per_second) * 1e6
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="batch 1, few samples")
    parser.add_argument("--seconds", type=float, default=600, help="begin nothing new after so long")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu_op.py needs a GPU: torch.cuda.is_available() is false")

    arch = "{}{}".format(*torch.cuda.get_device_capability())
    original = Original(build(options.out.parent / "gpu_baseline", arch), LEVELS)
    bandwidth, clock = copy_bandwidth(), sm_clock_hz()
    rows, lowest = [], []
    ceilings = {"copy_bytes_per_second": bandwidth, "sm_clock_hz": clock}
    ends = time.monotonic() + options.seconds
    for batch in (1,) if options.quick else (1, 4):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for shape in ("encoder", "decoder"):
                if time.monotonic() > ends:
                    print(f"out of time before {shape}, batch {batch}, {dtype}", flush=True)
                    continue
                lowest.append(floors(shape, batch, dtype, bandwidth, clock))
                rows += measure(shape, batch, dtype, 10 if options.quick else 30, original)
                torch.cuda.empty_cache()
                document = {"ceilings": ceilings, "floors": lowest, "rows": rows}
                options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
