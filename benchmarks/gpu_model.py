"""Measures Grounding DINO tiny end to end on a GPU, ours against transformers', with equal random weights.

    python benchmarks/gpu_model.py --out results.json [--quick]

Normally started by benchmarks/gpu.py. Images of 800x1333 already on the GPU, a prompt of 25 tokens, from
pixels to logits and boxes. First the outputs are compared in float32, with transformers' query selection
injected (near-ties otherwise swap queries). Then both are timed eager and compiled, in float32 and bfloat16
(autocast), ours also with the prompt's features cached and as a CUDA graph, at batch 1, 4 and 16. What
fails is left out with its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_baseline.timing import time_gpu, time_graph
from torch import Tensor, nn

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
    theirs: nn.Module, ours: Any, batch: dict[str, Tensor]
) -> dict[str, tuple[Callable[[], Any], bool]]:
    """What to time, and whether as a CUDA graph. The caches of `ours` are filled before by its first call."""
    text = ours.encode_text(batch["input_ids"], batch["attention_mask"])
    images = (batch["pixel_values"], None)  # no padding: known without asking the GPU
    compiled_theirs, compiled_ours = torch.compile(theirs), torch.compile(ours)

    def cached_text() -> Any:
        return ours.ground(ours.encode_image(*images), text)

    def whole(model: Any) -> Any:
        return model(*images, batch["input_ids"], batch["attention_mask"])

    return {
        "transformers": (lambda: call_theirs(theirs, batch), False),
        "transformers compiled": (lambda: call_theirs(compiled_theirs, batch), False),
        "ours": (lambda: whole(ours), False),
        "ours compiled": (lambda: whole(compiled_ours), False),
        "ours, text cached": (cached_text, False),
        "ours, text cached, CUDA graph": (cached_text, True),
    }


@torch.no_grad()
def measure(
    theirs: nn.Module, ours: Any, batch_size: int, dtype: str, samples: int
) -> list[dict[str, object]]:
    batch, rows = make_batch(batch_size), []
    low = contextlib.nullcontext() if dtype == "float32" else torch.autocast("cuda", dtype=torch.bfloat16)
    with low:
        for name, (work, as_graph) in contestants(theirs, ours, batch).items():
            row: dict[str, object] = {"batch": batch_size, "dtype": dtype, "contestant": name}
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                timing = (time_graph if as_graph else time_gpu)(lambda _, work=work: work(), samples)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="batch 1, few samples")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu_model.py needs a GPU: torch.cuda.is_available() is false")
    try:
        theirs, ours = build_models()
    except ImportError as error:
        raise SystemExit(f"the end-to-end table is left out: {error}") from None
    difference, rows = compare(theirs, ours), []
    print("largest differences:", difference, flush=True)
    for batch in (1,) if options.quick else (1, 4, 16):
        for dtype in ("float32", "bfloat16"):
            rows += measure(theirs, ours, batch, dtype, 5 if options.quick else 10)
    options.out.write_text(json.dumps({"difference": difference, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
