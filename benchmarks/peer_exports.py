"""transformers' Grounding DINO for benchmarks/peers.py: as an ONNX file, and run by ONNX Runtime or OpenVINO.

Its export does not work as it is. Patched, for the time of the export only, and never in the peer's favour or
to its harm:

- the masks of the phrases are computed beforehand (`isin` and `cummax` do not export); they depend on the
  prompt alone;
- `torch.special.logit` is written out;
- `torch.linspace` becomes a constant: exported, it turns all sampling locations into float64, for which ONNX
  Runtime has no GridSample.

The file is for one image size and one prompt length.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

Outputs = tuple[Tensor, Tensor, Tensor]  # logits (B, Q, T), boxes_cxcywh (B, Q, 4), chosen tokens (B, Q)
INPUTS = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")


class WithSelection(nn.Module):
    """A transformers model that also returns which tokens it chose as queries."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Outputs:
        chosen = []
        topk = torch.topk

        def recorded(*arguments: Any, **options: Any) -> Any:
            found = topk(*arguments, **options)
            chosen.append(found[1])
            return found

        with mock.patch.object(torch, "topk", recorded):
            output = self.model(**dict(zip(INPUTS, inputs, strict=True)))
        return output.logits, output.pred_boxes, chosen[0]


def eager_with_selection(model: Any, inputs: tuple[Tensor, ...], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and boxes of a transformers model made to take the given tokens as queries."""
    with mock.patch.object(torch, "topk", return_value=(None, chosen)):
        output = model(**dict(zip(INPUTS, inputs, strict=True)))
    return output.logits, output.pred_boxes


def export_onnx(model: Any, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write the model for inputs of these shapes."""
    with exportable(inputs[INPUTS.index("input_ids")]), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # a page of tracer warnings: sizes become constants, as said above
        torch.onnx.export(
            WithSelection(model).eval(), inputs, str(path), dynamo=False, opset_version=20,
            input_names=list(INPUTS), output_names=["logits", "boxes", "chosen"],
        )  # fmt: skip


@contextlib.contextmanager
def exportable(input_ids: Tensor) -> Iterator[None]:
    """The patches described at the top of this file."""
    from transformers.models.grounding_dino import modeling_grounding_dino as modeling

    name = "generate_masks_with_special_tokens_and_transfer_map"
    masks = getattr(modeling, name)(input_ids, torch.tensor(modeling.SPECIAL_TOKENS))

    def logit(x: Tensor, eps: float) -> Tensor:
        x = x.clamp(eps, 1 - eps)
        return torch.log(x / (1 - x))

    def linspace(start: Any, end: Any, steps: Any, *, dtype: torch.dtype, device: Any) -> Tensor:
        assert int(end - start) == int(steps) - 1, "only steps of 1"
        return torch.arange(int(steps), dtype=dtype) + float(start)

    with (
        mock.patch.object(modeling, name, return_value=masks),
        mock.patch.object(torch.special, "logit", logit),
        mock.patch.object(torch, "linspace", linspace),
    ):
        yield


def onnx_runtime(path: Path) -> Callable[[tuple[Tensor, ...]], Outputs]:
    """The file run by ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> Outputs:
        given = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True) if name in names}
        logits, boxes, chosen = (torch.from_numpy(array) for array in session.run(None, given))
        return logits, boxes, chosen

    return run


def openvino(path: Path) -> Callable[[tuple[Tensor, ...]], Outputs]:
    """The file run by OpenVINO on one thread in float32 (it may choose bfloat16 by itself)."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    core = ov.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    names = {name for node in compiled.inputs for name in node.names}

    def run(inputs: tuple[Tensor, ...]) -> Outputs:
        given = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True) if name in names}
        answer = compiled(given)
        logits, boxes, chosen = (torch.from_numpy(answer[node].copy()) for node in compiled.outputs)
        return logits, boxes, chosen

    return run
