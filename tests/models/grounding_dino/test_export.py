"""The whole network inside `torch.export` and `torch.compile`: one graph, the same outputs."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def model(small_model):
    return small_model("mm-grounding-dino", encoder_layers=1, decoder_layers=2)


@pytest.fixture
def inputs(batch_of):
    batch = batch_of([(96, 120)], [[2, 1]])
    return batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask


def assert_same(found, expected):
    assert torch.equal(found.topk_indices, expected.topk_indices)
    torch.testing.assert_close(found.boxes_cxcywh, expected.boxes_cxcywh, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_exported_program_computes_the_same(model, inputs):
    class Plain(torch.nn.Module):  # an exported program returns tensors, not our dataclass
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *arguments):
            out = self.model(*arguments)
            return out.logits, out.boxes_cxcywh, out.topk_indices

    program = torch.export.export(Plain(), inputs)
    expected = model(*inputs)
    logits, boxes, topk = program.module()(*inputs)
    assert_same(type(expected)(logits, boxes, topk), expected)
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("mkldnn" in name for name in names), "an export has to run where there is no oneDNN"


@pytest.mark.slow
@torch.no_grad()
def test_compiles_without_graph_breaks(model, inputs):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*inputs), model(*inputs))
