"""A Grounding DINO as one ONNX file: any image size, any batch, any prompt.

The network is traced once; sizes stay values of the graph, so nothing of the example that it is traced
with remains. (``torch.export`` reasons about every size symbolically and did not come to an
end on Swin's windows.)
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from groundingml.models.grounding_dino.attention import DeformableAttention, Sampler
from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.onnx_sampling import sample_with_custom_node, sample_with_standard_operators

MsdaOp = Literal["standard", "custom"]

OPSET = 18
INPUTS = {
    "pixel_values": {0: "batch", 2: "height", 3: "width"},
    "input_ids": {0: "batch", 1: "tokens"},
    "attention_mask": {0: "batch", 1: "tokens"},
}
OUTPUTS = {name: {0: "batch", 1: "queries"} for name in ("logits", "boxes_cxcywh", "topk_indices")}
_SAMPLERS: dict[MsdaOp, Sampler] = {
    "standard": sample_with_standard_operators,
    "custom": sample_with_custom_node,
}
_EXAMPLE_TOKENS = (101, 4937, 1012, 6556, 2491, 1012, 102)  # [CLS] cat . remote control . [SEP]


def export_onnx(
    model: GroundingDino, file: Path, msda_op: MsdaOp = "standard", about: Mapping[str, str] | None = None
) -> None:
    """Write ``model`` to ``file``, whole or not at all.

    Inputs: ``pixel_values`` (B, 3, H, W) float32, normalised, images of one size; ``input_ids`` (B, T) int64
    and ``attention_mask`` (B, T) int64, 1 at real tokens. Outputs: ``logits`` (B, Q, 256), -inf past the
    text;
    ``boxes_cxcywh`` (B, Q, 4) in 0..1; ``topk_indices`` (B, Q).

    Args:
        model: on the CPU, in float32.
        msda_op: "standard" makes deformable attention of GridSample and other standard operators, which
            every runtime has; "custom" makes one node of it (`onnx_sampling.CUSTOM_OP`), for a runtime that
            brings a kernel.
        about: further metadata of the file. What an image and a prompt are prepared by is there in any case.

    Raises:
        ImportError: the package onnx is not installed.
        OSError: the file cannot be written.
    """
    import onnx

    handle, name = tempfile.mkstemp(prefix=".groundingml-", suffix=".onnx", dir=file.parent)
    os.close(handle)
    part = Path(name)
    try:
        with _prepared(model, _SAMPLERS[msda_op]), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # that this exporter is the older one, and that loops are unrolled
            torch.onnx.export(
                _Plain(model),
                _example(model),
                str(part),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_axes={**INPUTS, **OUTPUTS},
                custom_opsets={"groundingml": 1} if msda_op == "custom" else None,
            )
        proto = onnx.load(str(part))
        del proto.graph.value_info[:]  # guesses of the tracer, some of which are wrong for other sizes
        proto.producer_name = "groundingml"
        for key, value in {**_preparation(model), "msda_op": msda_op, **(about or {})}.items():
            proto.metadata_props.add(key=key, value=value)
        onnx.save(proto, str(part))
        part.chmod(0o644)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


class _Plain(nn.Module):
    """The network with tensors for an answer, computed by ordinary ops."""

    def __init__(self, model: GroundingDino) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        # With gradients: without, layers take oneDNN's op and cut their rows in parts (see `models.linear`).
        with torch.enable_grad():
            found = self.model(pixel_values, None, input_ids, attention_mask)
        return found.logits, found.boxes_cxcywh, found.topk_indices


@contextlib.contextmanager
def _prepared(model: GroundingDino, sampler: Sampler) -> Iterator[None]:
    """The model with another sampler and without gradients of its own, for a while."""
    layers = [layer for layer in model.modules() if isinstance(layer, DeformableAttention)]
    samplers = [layer.sample for layer in layers]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    try:
        model.eval().requires_grad_(False)
        for layer in layers:
            layer.sample = sampler
        yield
    finally:
        for layer, before in zip(layers, samplers, strict=True):
            layer.sample = before
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(was_training)


def _example(model: GroundingDino) -> tuple[Tensor, Tensor, Tensor]:
    """Two images of a size that no window or stride divides, so that all padding is traced."""
    input_ids = torch.tensor([_EXAMPLE_TOKENS] * 2).clamp(max=model.config.text_config["vocab_size"] - 1)
    pixel_values = torch.linspace(-2, 2, 2 * 3 * 200 * 264).view(2, 3, 200, 264)
    return pixel_values, input_ids, torch.ones_like(input_ids)


def _preparation(model: GroundingDino) -> dict[str, str]:
    config = model.config
    values: dict[str, Any] = {
        "family": config.family,
        "image_size": config.image_size,
        "image_mean": config.image_mean,
        "image_std": config.image_std,
        "max_text_len": config.max_text_len,
        "score_aggregation": config.score_aggregation,
        "default_threshold": config.default_threshold,
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
