"""The Hugging Face layout, in both directions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from groundingml.models.checkpoints.errors import mismatch_report
from groundingml.models.checkpoints.huggingface import (
    config_from_huggingface,
    config_to_huggingface,
    from_huggingface_names,
    save_huggingface,
    to_huggingface_names,
)
from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig
from groundingml.models.nanodet import NanoDetConfig

OFFICIAL = ["grounding_dino_tiny", "grounding_dino_base", "mm_grounding_dino_tiny", "mm_grounding_dino_base",
            "mm_grounding_dino_large"]  # fmt: skip


def shapes(weights):
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


@pytest.mark.parametrize("layout", ["_ondisk", ""], ids=["as on the hub", "as in memory"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_checkpoints_convert_with_nothing_left_over(shared_data, name, layout):
    listed = json.loads((shared_data / "models" / "keys" / f"hf_{name}{layout}.json").read_text())
    config = config_from_huggingface(listed["config"])
    assert config == getattr(GroundingDinoConfig, name)()
    with torch.device("meta"):
        ours = GroundingDino(config).state_dict()
        theirs = {key: torch.empty(shape) for key, (shape, _) in listed["keys"].items()}
    assert mismatch_report(shapes(ours), shapes(from_huggingface_names(theirs, config))) is None
    if layout == "_ondisk":
        assert mismatch_report(shapes(theirs), shapes(to_huggingface_names(ours))) is None


@pytest.mark.parametrize(("family", "levels"), [("grounding-dino", 4), ("mm-grounding-dino", 5)])
@torch.no_grad()
def test_transformers_loads_what_we_save(small_model, batch_of, tmp_path, family, levels):
    transformers = pytest.importorskip("transformers")
    model = small_model(family, levels, decoder_eps=1e-5, head_eps=1e-5)
    model.save_pretrained(tmp_path)
    theirs, report = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    theirs.model.text_backbone.set_attn_implementation("sdpa")
    batch = batch_of([(90, 130), (70, 128)], [[2, 1], [1, 1]])
    expected = model(batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask)
    found = theirs.eval()(
        batch.pixel_values,
        pixel_mask=batch.pixel_mask.long(),
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
    )
    torch.testing.assert_close(found.pred_boxes, expected.boxes_cxcywh, atol=1e-5, rtol=0)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.size["shortest_edge"] == 800


@torch.no_grad()
def test_we_load_what_we_save(small_model, tmp_path):
    from safetensors.torch import load_file

    model = small_model("mm-grounding-dino", score_aggregation="max", default_threshold=0.17)
    save_huggingface(model, tmp_path)
    config = config_from_huggingface(json.loads((tmp_path / "config.json").read_text()))
    assert config == model.config
    weights = from_huggingface_names(load_file(tmp_path / "model.safetensors"), config)
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_copies_and_buffers_of_older_uploads_are_dropped(small_model):
    model = small_model("grounding-dino")
    weights = to_huggingface_names(model.state_dict())
    plain = dict(weights)
    for name, tensor in plain.items():
        if name.startswith("bbox_embed.0."):
            for layer in (1, 2):
                weights[name.replace("bbox_embed.0", f"bbox_embed.{layer}")] = tensor
            weights[f"model.decoder.{name}"] = tensor
    block = "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0.attention.self"
    weights[f"{block}.relative_position_index"] = torch.zeros(16, 16)
    weights["model.text_backbone.embeddings.position_ids"] = torch.zeros(1, 256)
    weights["model.backbone.conv_encoder.model.layernorm.weight"] = torch.zeros(96)
    converted = from_huggingface_names(weights, model.config)
    assert mismatch_report(shapes(model.state_dict()), shapes(converted)) is None


def test_unknown_and_incomplete_parameters_stay_visible(small_model):
    model = small_model("grounding-dino")
    weights = to_huggingface_names(model.state_dict())
    query = "model.backbone.conv_encoder.model.encoder.layers.0.blocks.1.attention.self.query.weight"
    del weights[query.replace("query", "key")]
    weights["model.something.weight"] = torch.zeros(1)
    report = mismatch_report(
        shapes(model.state_dict()), shapes(from_huggingface_names(weights, model.config))
    )
    assert "backbone.stages.0.blocks.1.attention.qkv.weight" in report
    assert query in report
    assert "model.something.weight" in report


def test_query_key_and_value_keep_their_places(small_model):
    model = small_model("grounding-dino")
    block = "model.backbone.conv_encoder.model.encoder.layers.1.blocks.0.attention.self"
    weights = to_huggingface_names(model.state_dict())
    fused = model.backbone.stages[1].blocks[0].attention.qkv.weight
    channels = fused.shape[1]
    for index, part in enumerate(("query", "key", "value")):
        assert torch.equal(
            weights[f"{block}.{part}.weight"], fused[index * channels : (index + 1) * channels]
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "owlvit"}, "model_type is 'owlvit'; expected one of 'grounding-dino'"),
        ({"two_stage": False}, "two_stage=False is not supported"),
        ({"position_embedding_type": "learned"}, "position_embedding_type='learned' is not supported"),
        ({"backbone_config": {"model_type": "resnet"}}, "backbone_config: model_type='resnet'"),
        ({"backbone_config": {"use_absolute_embeddings": True}}, "use_absolute_embeddings=True"),
    ],
)
def test_variants_that_we_lack_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_huggingface({"model_type": "grounding-dino"} | changes)


def test_fields_left_out_have_transformers_defaults():
    assert (
        config_from_huggingface({"model_type": "grounding-dino"}) == GroundingDinoConfig.grounding_dino_tiny()
    )
    mm = config_from_huggingface({"model_type": "mm-grounding-dino"})
    assert mm.share_box_head
    assert mm.share_class_head
    by_name = {"backbone_config": {"out_features": ["stage1", "stage4"]}, "num_feature_levels": 3}
    assert config_from_huggingface({"model_type": "mm-grounding-dino"} | by_name).backbone.out_stages == (
        1,
        4,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion_heads": 2}, "fusion_heads=2"),
        ({"class_bias": True}, "class_bias=True"),
        ({"backbone": NanoDetConfig()}, "NanoDetConfig"),
    ],
)
def test_what_transformers_cannot_hold_is_not_saved_as_if(changes, message):
    config = replace(GroundingDinoConfig.grounding_dino_tiny(), **changes)
    with pytest.raises(ValueError, match=f"transformers has no model of this kind.*{message}"):
        config_to_huggingface(config)
