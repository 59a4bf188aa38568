"""Our GLIP against what microsoft/GLIP computed with the same weights (see the note in the data)."""

from __future__ import annotations

import pytest
import torch

from groundingml.inference.anchor_candidates import select_anchor_candidates
from groundingml.inference.prompts import Prompt, TextChunk
from groundingml.models.checkpoints.glip import from_glip_names
from groundingml.models.glip import Glip, GlipConfig, GlipImageFeatures, GlipOutput, GlipTextFeatures
from groundingml.models.swin import SwinConfig

LEVELS = range(5)


@pytest.fixture(scope="module")
def output(reference, reference_model) -> GlipOutput:
    with torch.no_grad():
        return reference_model(reference.pixel_values, reference.pixel_mask, *reference.text)


def of_level(tensor, output: GlipOutput, level: int):
    return tensor.split(output.level_cells, dim=1)[level]


@torch.no_grad()
def test_pyramid(reference, reference_model):
    """Its last level hangs on all of Swin, and on the extra convolutions."""
    found = reference_model.encode_image(reference.pixel_values).maps[4]
    assert torch.allclose(found, reference.arrays["fpn_4"], atol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_token_logits(reference, output, level):
    real = reference.arrays["attention_mask"].bool()[:, None, :]
    found, expected = of_level(output.logits, output, level), reference.arrays[f"dot_logits_{level}"]
    difference = (found - expected).masked_fill(~real, 0.0)
    assert difference.abs().max() < reference.spec["tolerance"]["dot_logits"]
    assert found.masked_select(~real).isneginf().all()


@pytest.mark.parametrize("level", LEVELS)
def test_boxes_and_centerness(reference, output, level):
    tolerance = reference.spec["tolerance"]["bbox"]
    deltas = reference.arrays[f"bbox_reg_{level}"].flatten(2).transpose(1, 2)
    assert torch.allclose(of_level(output.box_deltas, output, level), deltas, atol=tolerance, rtol=0)
    centerness = reference.arrays[f"centerness_{level}"].flatten(1)
    found = of_level(output.centerness_logits, output, level)
    assert torch.allclose(found, centerness, atol=tolerance, rtol=0)


def test_anchors(reference, output):
    assert torch.equal(output.anchors_xyxy, reference.arrays["anchors"])


@pytest.mark.parametrize("row", [0, 1])
@torch.no_grad()
def test_detections(reference, reference_model, row):
    """The whole way to the 100 boxes, one image at a time, without the padding of the caption."""
    ids, mask = (
        x[row : row + 1, : int(reference.arrays["attention_mask"][row].sum())] for x in reference.text
    )
    output = reference_model(
        reference.pixel_values[row : row + 1], reference.pixel_mask[row : row + 1], ids, mask
    )
    spans = reference.spec["positive_map_label_to_token"][row].values()
    prompts = tuple(Prompt(number, tuple(span), (number,)) for number, span in enumerate(spans))
    chunk = TextChunk("", tuple(ids[0].tolist()), prompts)
    found = select_anchor_candidates(output, 0, chunk, torch.zeros(len(prompts)), reference_model.config)

    height, width = reference.spec["sizes"][row]
    centre, size = found.boxes_cxcywh[:, :2], found.boxes_cxcywh[:, 2:]
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    boxes = boxes * torch.tensor([width, height, width, height])
    tolerance = reference.spec["tolerance"]
    assert len(boxes) == 100
    assert torch.equal(found.label_ids + 1, reference.arrays[f"det_labels_{row}"])
    scores = reference.arrays[f"det_scores_{row}"]
    assert torch.allclose(found.scores, scores, atol=tolerance["det_scores"], rtol=0)
    expected = reference.arrays[f"det_boxes_{row}"]
    assert torch.allclose(boxes, expected, atol=tolerance["det_boxes"], rtol=0)


@torch.no_grad()
def test_fused_tower_and_heads(tower_reference):
    """GLIP-T's tower at its real width, two layers of it, against MMDetection's."""
    swin = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4)
    with torch.device("meta"):
        model = Glip(GlipConfig(backbone=swin, tower_layers=2)).eval()
    weights = from_glip_names(tower_reference.weights)
    expected = {name for name in model.state_dict() if name.startswith(("tower.", "head."))}
    assert set(weights) == expected
    model.load_state_dict(weights, strict=False, assign=True)
    image = GlipImageFeatures(tower_reference.maps, ((96, 128), (96, 128)))
    output = model.ground(image, GlipTextFeatures(tower_reference.text, tower_reference.text_mask))
    real = tower_reference.text_mask[:, None, :].expand_as(output.logits)
    assert tower_reference.logits[real].std() > 0.3
    for found, expected in (
        (output.logits[real], tower_reference.logits[real]),
        (output.box_deltas, tower_reference.box_deltas),
        (output.centerness_logits, tower_reference.centerness_logits),
    ):
        assert torch.allclose(found, expected, atol=tower_reference.tolerance, rtol=0)
