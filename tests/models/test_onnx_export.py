"""One ONNX file for all sizes: what ONNX Runtime and OpenVINO make of it is what PyTorch computes.

The embedded model is exported, compared and used in ``tests/cli/test_export_onnx.py``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.onnx_export import export_onnx
from groundingml.models.onnx_sampling import sample_with_standard_operators
from groundingml.models.swin import SwinConfig
from groundingml.ops import ms_deform_attn_from_offsets

onnx = pytest.importorskip("onnx", reason="needs pip install 'groundingml[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'groundingml[onnx]'")

CASES = [  # batch, height, width, prompt: none is that of the trace
    (1, 97, 131, (4937,)),
    (3, 160, 64, (4937, 1012, 6556, 2491, 1012, 3899, 2158)),
    (2, 224, 224, (6556, 2491)),
]
Runner = Callable[[dict[str, np.ndarray]], tuple[np.ndarray, ...]]


def small(family: str) -> GroundingDino:
    torch.manual_seed(0)
    text = {"vocab_size": 30522, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    mm = family == "mm-grounding-dino"
    config = GroundingDinoConfig(
        family=family,
        backbone=SwinConfig(embed_dim=8, depths=(2, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4),
        text_config={**text, "intermediate_size": 16, "max_position_embeddings": 512},
        d_model=16, num_queries=30, encoder_layers=1, decoder_layers=1, encoder_heads=2, decoder_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, fusion_dim=16, fusion_heads=2, text_heads=2, text_ffn_dim=16,
        group_norm_groups=4, class_bias=mm, share_class_head=not mm, share_box_head=not mm,
        class_scale=0.25 if mm else 1.0,
    )  # fmt: skip
    return GroundingDino(config).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = small("mm-grounding-dino").train()
    before = copy.deepcopy(model.state_dict())
    was_training = model.training
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, file, about={"name": "small"})
    assert [found.name for found in file.parent.iterdir()] == ["model.onnx"]
    assert model.training == was_training  # the model is as before
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return model.eval(), file


def compare(model: GroundingDino, run: Runner) -> None:
    generator = torch.Generator().manual_seed(1)
    for batch, height, width, prompt in CASES:
        pixels = torch.randn(batch, 3, height, width, generator=generator)
        ids = torch.tensor([[101, *prompt, 1012, 102]] * batch)
        inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits, boxes, chosen = run({name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.inference_mode():
            expected = model(pixels, None, ids, topk_indices=torch.from_numpy(np.asarray(chosen)))
        real = torch.isfinite(expected.logits).numpy()
        assert np.array_equal(np.isfinite(logits), real)
        np.testing.assert_allclose(logits[real], expected.logits.numpy()[real], atol=1e-3)
        np.testing.assert_allclose(boxes, expected.boxes_cxcywh.numpy(), atol=1e-3)
        with torch.inference_mode():  # the choice itself, which only near-ties may change
            best = model(pixels, None, ids).topk_indices.numpy()
        shared = [len(np.intersect1d(*rows)) / len(rows[0]) for rows in zip(best, chosen, strict=True)]
        assert min(shared) >= 0.9


def test_onnx_runtime(exported: Any) -> None:
    model, file = exported
    session = onnxruntime.InferenceSession(str(file))
    compare(model, lambda inputs: tuple(session.run(None, inputs)))


def test_openvino(exported: Any) -> None:
    openvino = pytest.importorskip("openvino", reason="needs pip install 'groundingml[onnx]'")
    model, file = exported
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = ("logits", "boxes_cxcywh", "topk_indices")
    compare(model, lambda inputs: tuple(compiled(inputs)[name] for name in names))


def test_the_file_says_how_to_use_it(exported: Any) -> None:
    model, file = exported
    proto = onnx.load(str(file))
    onnx.checker.check_model(proto)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(about["image_size"]) == list(model.config.image_size)
    assert about["msda_op"] == "standard"
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    sizes = [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", "", "height", "width"]


def test_the_custom_node(tmp_path: Path) -> None:
    """In ONNX's own evaluator, with our op as the kernel of the node."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class MSDeformAttnFromOffsets(OpRun):  # type: ignore[misc]
        op_domain = "groundingml"

        def _run(self, value: Any, sizes: Any, *geometry: Any) -> tuple[np.ndarray]:
            tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (value, *geometry)]
            return (ms_deform_attn_from_offsets(tensors[0], sizes.tolist(), *tensors[1:]).numpy(),)

    class GatherElements(OpRun):  # type: ignore[misc]  # ONNX's own takes no more than 64 indices
        def _run(self, data: Any, indices: Any, axis: int = 0) -> tuple[np.ndarray]:
            return (np.take_along_axis(data, indices, axis),)

    model = small("grounding-dino")
    export_onnx(model, tmp_path / "model.onnx", "custom")
    proto = onnx.load(str(tmp_path / "model.onnx"))
    nodes = [node for node in proto.graph.node if node.domain == "groundingml"]
    assert [node.op_type for node in nodes] == [
        "MSDeformAttnFromOffsets"
    ] * 2  # an encoder and a decoder layer
    assert not any(node.op_type == "GridSample" for node in proto.graph.node)
    evaluator = ReferenceEvaluator(proto, new_ops=[MSDeformAttnFromOffsets, GatherElements])
    compare(model, lambda inputs: tuple(evaluator.run(None, inputs)))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_standard_operators_compute_what_the_op_does(coordinates: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (3, 4)]
    value = torch.randn(2, 47, 2, 4, generator=generator)
    reference = torch.rand(2, 9, 2, coordinates, generator=generator)
    offsets = 3 * torch.randn(2, 9, 2, 2, 3, 2, generator=generator)
    logits = torch.randn(2, 9, 2, 6, generator=generator)
    expected = ms_deform_attn_from_offsets(value, shapes, reference, offsets, logits)
    found = sample_with_standard_operators(value, shapes, reference, offsets, logits)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
