"""The official tiny sizes against transformers', on one small image."""

from __future__ import annotations

import gc

import pytest
import torch

from groundingml.models.grounding_dino import GroundingDinoConfig


@pytest.mark.slow
@pytest.mark.parametrize("family", ["grounding_dino_tiny", "mm_grounding_dino_tiny", "llmdet_tiny"])
@torch.no_grad()
def test_outputs_equal_transformers(reference_pair, batch_of, family):
    config = getattr(GroundingDinoConfig, family)()
    # Dot products over 256 channels would reach hundreds; MM-Grounding-DINO divides them by 16.
    pair = reference_pair(config, seed=len(family), last_norms=0.3 if config.class_scale == 1.0 else 0.9)
    batch = batch_of([(227, 290)], [[1, 2, 1, 3]])
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    theirs = pair.theirs(batch.pixel_values, pixel_mask=batch.pixel_mask.long(), **inputs)
    scores = theirs.enc_outputs_class.amax(-1)[0]
    topk = scores.topk(config.num_queries).indices

    image = pair.ours.encode_image(batch.pixel_values, batch.pixel_mask)
    text = pair.ours.encode_text(**inputs)
    ours = pair.ours.ground(image, text, topk_indices=topk[None])
    columns = batch.input_ids.shape[1]
    logits = (ours.logits - theirs.logits)[..., :columns].abs().max().item()
    boxes = (ours.boxes_cxcywh - theirs.pred_boxes).abs().max().item()
    print(
        f"{family}: logits {logits:.1e} of {theirs.logits[..., :columns].abs().max():.1f}, boxes {boxes:.1e}"
    )
    assert logits <= 1e-4
    assert boxes <= 1e-5

    chosen = pair.ours.ground(image, text).topk_indices[0]
    different = set(chosen.tolist()) ^ set(topk.tolist())
    assert all(abs(float(scores[token] - scores[topk[-1]])) < 1e-4 for token in different), different
    assert chosen.unique().numel() == config.num_queries
    del pair
    gc.collect()
