"""GLIP's files, the original's and MMDetection's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from groundingml.models import CheckpointError, load_model
from groundingml.models.checkpoints.glip import (
    config_from_shapes,
    from_glip_names,
    is_glip,
    to_glip_names,
)
from groundingml.models.glip import Glip, GlipConfig
from groundingml.models.grounding_dino import GroundingDinoConfig
from groundingml.models.grounding_dino.config import BERT_BASE
from groundingml.models.swin import SwinConfig

OFFICIAL = {
    "glip_T_A_original": GlipConfig.tiny_a,
    "glip_T_B_original": GlipConfig.tiny,
    "glip_T_original": GlipConfig.tiny,
    "glip_L_original": GlipConfig.large,
}
SMALL = GlipConfig(
    backbone=SwinConfig(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2), window_size=4),
    text_config=BERT_BASE
    | {"vocab_size": 1100, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    | {"intermediate_size": 24, "max_position_embeddings": 256},
    d_model=32,
    tower_layers=2,
    fusion_dim=32,
)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names_and_shapes_are_ours(key_list, name):
    with torch.device("meta"):
        expected = Glip(OFFICIAL[name]()).state_dict()
    found = from_glip_names(key_list(name))
    shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in expected.items()}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_config_is_told_from_the_shapes(key_list, name):
    assert is_glip(key_list(name))
    assert config_from_shapes(from_glip_names(key_list(name))) == OFFICIAL[name]()


def make_model(fused: bool) -> Glip:
    torch.manual_seed(0)
    model = Glip(SMALL if fused else replace(SMALL, fused=False, fusion_dim=GlipConfig.fusion_dim))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def original_layout(model: Glip) -> dict[str, Tensor]:
    """What the original would write: entries of the tower in one list, BGR, and what nobody reads."""
    weights = {}
    for name, tensor in to_glip_names(model.state_dict()).items():
        entry = re.fullmatch(r"rpn\.head\.dyhead_tower\.(\d+)\.(.*)", name)
        if entry and model.config.fused:
            part = (
                2 if re.match("DyConv|AttnConv|relu|offset", entry[2]) else not entry[2].startswith("b_attn")
            )
            name = f"rpn.head.dyhead_tower.{3 * int(entry[1]) + int(part)}.{entry[2]}"
        weights[name] = tensor.clone()
    weights["backbone.body.patch_embed.proj.weight"] = weights["backbone.body.patch_embed.proj.weight"].flip(
        1
    )
    weights["rpn.head.cls_logits.weight"] = torch.randn(80, 32, 1, 1)
    weights["rpn.anchor_generator.cell_anchors.0"] = torch.randn(1, 4)
    weights["language_backbone.body.model.embeddings.position_ids"] = torch.arange(256)[None]
    weights["backbone.body.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    return weights


def mmdet_layout(
    weights: Mapping[str, Tensor], spelling: tuple[str, str], scalars: bool
) -> dict[str, Tensor]:
    """MMDetection's converter from the original, written independently of our tables."""
    found = {}
    for name, tensor in weights.items():
        if ".downsample." in name:
            quarters = tensor.reshape(*tensor.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]
            tensor = quarters.transpose(-1, -2).reshape(tensor.shape)
        if "anchor_generator" in name or "cls_logits" in name:
            continue
        if scalars and name.endswith(".scale"):
            tensor = tensor.reshape(())
        for pattern, new in (
            (r"^backbone\.body\.layers", "backbone.stages"),
            (r"^backbone\.body", "backbone"),
            (r"patch_embed\.proj\.", "patch_embed.projection."),
            (r"(stages.*)mlp\.fc1", r"\1ffn.layers.0.0"),
            (r"(stages.*)mlp\.fc2", r"\1ffn.layers.1"),
            (r"(stages.*)attn\.", r"\1attn.w_msa."),
            (r"backbone\.fpn\.fpn_inner(\d)", lambda m: f"neck.lateral_convs.{int(m[1]) - 2}.conv"),
            (r"backbone\.fpn\.fpn_layer(\d)", lambda m: f"neck.fpn_convs.{int(m[1]) - 2}.conv"),
            (r"backbone\.fpn\.top_blocks\.p(\d)", lambda m: f"neck.fpn_convs.{int(m[1]) - 3}.conv"),
            (r"^language_backbone", "language_model.language_backbone"),
            (r"^rpn", "bbox_head"),
            (r"DyConv", spelling[0]),
            (r"AttnConv", spelling[1]),
        ):
            name = re.sub(pattern, new, name)
        found[name] = tensor
    return found


def outputs(model: Glip) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        output = model(torch.randn(1, 3, 64, 96), None, torch.tensor([[101, 500, 102]]))
    return [output.logits, output.box_deltas, output.centerness_logits]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("software", ["original", "mmdet trained", "mmdet converted"])
def test_outputs_are_equal(tmp_path, fused, software):
    model = make_model(fused)
    weights = original_layout(model)
    content: dict[str, object] = {"model": {f"module.{name}": tensor for name, tensor in weights.items()}}
    if software != "original":
        trained = software == "mmdet trained"
        spelling = ("dyconvs", "attnconv") if trained else ("DyConv", "AttnConv")
        content = {"state_dict": mmdet_layout(weights, spelling, scalars=trained), "meta": {"epoch": 12}}
    torch.save(content, tmp_path / "glip.pth")
    loaded = load_model(tmp_path / "glip.pth")
    assert isinstance(loaded, Glip)
    assert loaded.config == model.config
    for found, expected in zip(outputs(loaded), outputs(model), strict=True):
        assert torch.equal(found, expected)


def test_config_given(tmp_path):
    model = make_model(fused=True)
    torch.save(original_layout(model), tmp_path / "glip.pth")
    changed = replace(model.config, fusion_heads=4)
    assert load_model(tmp_path / "glip.pth", changed).config == changed
    assert load_model(tmp_path / "glip.pth", changed.to_dict()).config == changed
    with pytest.raises(
        CheckpointError, match="the weights are GLIP's, but the config is one of Grounding DINO"
    ):
        load_model(tmp_path / "glip.pth", GroundingDinoConfig())
    with pytest.raises(CheckpointError, match=r"does not describe a GLIP model: not fields.*num_queries"):
        load_model(tmp_path / "glip.pth", {"num_queries": 3})
    with pytest.raises(CheckpointError, match="one of GLIP, but the weights are not GLIP's"):
        load_model(_grounding_dino(tmp_path), GlipConfig())


def _grounding_dino(folder):
    name = "model.encoder.layers.0.fusion_layer.vision_param"
    torch.save({name: torch.zeros(4)}, folder / "dino.pth")
    return folder / "dino.pth"


def test_what_does_not_fit_is_named_as_in_the_file(tmp_path):
    weights = original_layout(make_model(fused=False))
    del weights["rpn.head.bbox_pred.bias"]
    weights["rpn.head.bias_lang"] = torch.zeros(3)
    torch.save(weights, tmp_path / "glip.pth")
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path / "glip.pth")
    assert "1 missing: rpn.head.bbox_pred.bias (4,)" in str(error.value)
    assert "rpn.head.bias_lang: the file has (3,), the model needs (64,)" in str(error.value)


def test_forks_are_refused():
    weights = original_layout(make_model(fused=True)) | {"rpn.head.mlm_head.bias": torch.zeros(4)}
    with pytest.raises(
        CheckpointError, match=r"1 of its parameters are unknown: rpn\.head\.mlm_head\.bias.*GLIPv2"
    ):
        from_glip_names(weights)


def test_a_part_of_a_model_is_refused(tmp_path):
    weights = {k: v for k, v in original_layout(make_model(fused=True)).items() if k.startswith("rpn.")}
    torch.save(weights, tmp_path / "glip.pth")
    with pytest.raises(CheckpointError, match=r"patch_embedding\.weight is missing"):
        load_model(tmp_path / "glip.pth")
