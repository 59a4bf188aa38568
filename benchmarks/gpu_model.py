"""Measures Grounding DINO tiny end to end on a GPU, ours against transformers', with equal random weights.

    python benchmarks/gpu_model.py --out results.json [--quick]

Normally started by benchmarks/gpu.py. Images of 800x1333 already on the GPU, a prompt of 25 tokens, from
pixels to logits and boxes. First the outputs are compared in float32, with transformers' query selection
injected (near-ties otherwise swap queries). Then both are timed eager, in float32 and bfloat16 (autocast),
ours also with the prompt's features cached and from CUDA graphs, at batch 1, 4 and 16; at last both under
torch.compile at batch 1. What fails is left out with its reason; the file is written after each batch.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_baseline.timing import copy_bandwidth, time_gpu
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from groundingml.inference.cuda_graphs import CudaGraphs

SIZE = (800, 1333)
TOKENS = 25


def randomise(model: nn.Module) -> None:
    """Weights that keep activations near 1, so that outputs compare and points stay in the image."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            value = 1 + 0.1 * noise
        elif name.endswith(("vision_param", "text_param", "_scale")):
            value = 0.5 + 0.2 * noise
        elif name.endswith("sampling_offsets.bias"):
            value = 1.5 * noise
        elif parameter.ndim < 2:
            value = 0.1 * noise
        else:
            value = noise / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)


def build_models() -> tuple[nn.Module, nn.Module]:
    """transformers' model and ours, equal weights, on the GPU in eval mode."""
    import transformers

    from groundingml.models.checkpoints.huggingface import (
        config_from_huggingface,
        config_to_huggingface,
        from_huggingface_names,
    )
    from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig

    values = copy.deepcopy(config_to_huggingface(GroundingDinoConfig.grounding_dino_tiny()))
    values.pop("groundingml", None)
    theirs = transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig(**values))
    randomise(theirs)
    # with eager attention transformers adds BERT's boolean mask to the scores instead of applying it
    theirs.model.text_backbone.set_attn_implementation("sdpa")
    ours = GroundingDino(config_from_huggingface(values))
    ours.load_state_dict(from_huggingface_names(theirs.state_dict(), ours.config))
    return theirs.cuda().eval(), ours.cuda().eval()


def make_batch(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(200, 1000, (TOKENS,), generator=generator)
    ids[0], ids[-1], ids[6::6] = 101, 102, 1012  # [CLS], [SEP], and "." after each phrase
    pixels = torch.randn(batch, 3, *SIZE, generator=generator).cuda()
    ids = ids.expand(batch, -1).contiguous().cuda()
    return {
        "pixel_values": pixels,
        "pixel_mask": torch.ones(batch, *SIZE, dtype=torch.bool, device="cuda"),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def call_theirs(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    return model(**{**batch, "pixel_mask": batch["pixel_mask"].long()})


@torch.no_grad()
def compare(theirs: nn.Module, ours: Any) -> dict[str, float]:
    """Largest differences in float32, transformers' top-k injected."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    batch = make_batch(1)
    expected = call_theirs(theirs, batch)
    topk = expected.enc_outputs_class.amax(-1).topk(ours.config.num_queries).indices
    found = ours(**batch, topk_indices=topk)
    logits = (found.logits[..., :TOKENS] - expected.logits[..., :TOKENS]).abs().nan_to_num(0)
    return {
        "logits": float(logits.max()),
        "boxes": float((found.boxes_cxcywh - expected.pred_boxes).abs().max()),
    }


def contestants(
    theirs: nn.Module, ours: Any, batch: dict[str, Tensor], *, compiled: bool
) -> dict[str, Callable[[], Any]]:
    """What to time; the caches of `ours` are filled before by its first calls."""
    text = ours.encode_text(batch["input_ids"][:1], batch["attention_mask"][:1])
    images = (batch["pixel_values"], None)  # no padding: known without asking the GPU

    def whole(model: Any) -> Any:
        return model(*images, batch["input_ids"], batch["attention_mask"])

    if compiled:
        compiled_theirs, compiled_ours = torch.compile(theirs), torch.compile(ours, fullgraph=True)
        return {
            "ours compiled": lambda: whole(compiled_ours),
            "transformers compiled": lambda: call_theirs(compiled_theirs, batch),
        }
    graphs = CudaGraphs(ours, torch.device("cuda"))
    return {
        "transformers": lambda: call_theirs(theirs, batch),
        "ours": lambda: whole(ours),
        "ours, text cached": lambda: ours.ground(ours.encode_image(*images), text),
        # as `Detector(..., cuda_graphs=True)` runs it, copies in and out included
        "ours, text cached, CUDA graphs": lambda: graphs.ground(graphs.encode_image(*images), text),
    }


@torch.inference_mode()
def measure(
    theirs: nn.Module, ours: Any, batch_size: int, dtype: str, samples: int, *, compiled: bool
) -> list[dict[str, object]]:
    batch, rows = make_batch(batch_size), []
    low = contextlib.nullcontext() if dtype == "float32" else torch.autocast("cuda", dtype=torch.bfloat16)
    with low:
        for name, work in contestants(theirs, ours, batch, compiled=compiled).items():
            row: dict[str, object] = {"batch": batch_size, "dtype": dtype, "contestant": name}
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                timing = time_gpu(lambda _, work=work: work(), samples)
                row |= {
                    "ms": timing.median_us / 1000,
                    "spread_ms": timing.spread_us / 1000,
                    "samples": timing.samples,
                }
                row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as problem:
                row["left_out"] = (str(problem) or repr(problem)).splitlines()[0]
            print(row, flush=True)
            rows.append(row)
    return rows


@torch.inference_mode()
def floors(ours: Any, batch_size: int, dtype: str, bandwidth: float) -> dict[str, object]:
    """Milliseconds below which no run gets: the network's products at the speed of the GPU's best product,
    and its weights and pixels read once. What the op takes is in gpu_op.py."""
    batch = make_batch(batch_size)
    with FlopCounterMode(display=False) as counted:
        ours(batch["pixel_values"], None, batch["input_ids"], batch["attention_mask"])
    a = torch.randn(8192, 8192, device="cuda", dtype=getattr(torch, dtype))
    flops = 2 * 8192**3 / (time_gpu(lambda _: a @ a, samples=5).median_us * 1e-6)
    read = sum(p.numel() for p in ours.parameters()) * 4 + batch["pixel_values"].numel() * 4
    return {
        "batch": batch_size,
        "dtype": dtype,
        "gflop": counted.get_total_flops() / 1e9,
        "products_ms": counted.get_total_flops() / flops * 1e3,
        "bytes_ms": read / bandwidth * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="batch 1, few samples")
    parser.add_argument("--seconds", type=float, default=600, help="begin nothing new after so long")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu_model.py needs a GPU: torch.cuda.is_available() is false")
    ends = time.monotonic() + options.seconds
    try:
        theirs, ours = build_models()
    except ImportError as error:
        raise SystemExit(f"the end-to-end table is left out: {error}") from None
    document: dict[str, Any] = {"difference": compare(theirs, ours), "floors": [], "rows": []}
    print("largest differences:", document["difference"], flush=True)
    bandwidth, samples = copy_bandwidth(), 5 if options.quick else 10
    batches = (1,) if options.quick else (1, 4, 16)
    # What is worth most comes first: compiling takes minutes.
    plan = [(batch, dtype, False) for batch in batches for dtype in ("bfloat16", "float32")]
    plan += [(1, dtype, True) for dtype in ("bfloat16", "float32")]
    for batch, dtype, compiled in plan:
        if time.monotonic() > ends:
            print(f"out of time before batch {batch}, {dtype}{', compiled' if compiled else ''}", flush=True)
            continue
        if not compiled:
            document["floors"].append(floors(ours, batch, dtype, bandwidth))
        document["rows"] += measure(theirs, ours, batch, dtype, samples, compiled=compiled)
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
