"""The compact layout: what it costs in precision, and that damage is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from groundingml.models import load_model
from groundingml.models.checkpoints.errors import CheckpointError
from groundingml.models.checkpoints.native import config_from_native, pack, read_native, unpack
from groundingml.models.grounding_dino import GroundingDino
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.nanodet import NanoDetConfig

MATRIX = "text_encoder.bert.encoder.layer.0.output.dense.weight"
TINY = GroundingDinoConfig(
    family="nano",
    backbone=NanoDetConfig(
        stem_channels=4, stage_channels=(8, 8, 8, 8), stage_blocks=(1, 1, 1, 1), channels=8
    ),
    text_config={
        "vocab_size": 1100, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 64,
    },
    text_sees_cls=True, max_text_len=64, d_model=16, num_levels=3, num_queries=10, encoder_layers=1,
    decoder_layers=1, encoder_heads=2, decoder_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, fusion_dim=16,
    fusion_heads=2, text_heads=2, text_ffn_dim=16, group_norm_groups=4, class_projection=True,
    proposals="dense", query_content="proposals", known_names=3,
)  # fmt: skip


def test_a_model_comes_back_within_the_rounding(tmp_path: Path) -> None:
    model = GroundingDino(TINY).eval()
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == TINY
    for name, tensor in model.state_dict().items():
        stored = loaded.state_dict()[name]
        assert stored.dtype == (torch.float32 if tensor.is_floating_point() else tensor.dtype)
        step = tensor.abs().amax(dim=-1, keepdim=True) / 127 if "bert" in name and tensor.ndim == 2 else 0.01
        assert ((stored - tensor).abs() <= step).all(), name


def test_matrices_of_the_text_encoder_are_int8_with_a_scale_for_each_row() -> None:
    weight = torch.tensor([[1.27, -0.02], [0.0, 0.0], [-25.4, 12.7]])
    packed = pack({MATRIX: weight, "decoder.norm.weight": torch.ones(3)})
    assert packed[MATRIX].tolist() == [[127, -2], [0, 0], [-127, 64]]
    assert packed[MATRIX + ".scale"].shape == (3,)
    assert packed["decoder.norm.weight"].dtype == torch.float16
    restored = unpack(packed)
    assert set(restored) == {MATRIX, "decoder.norm.weight"}
    torch.testing.assert_close(restored[MATRIX], weight, atol=0.101, rtol=0)


def test_a_missing_scale_is_named() -> None:
    packed = pack({MATRIX: torch.ones(2, 2)})
    del packed[MATRIX + ".scale"]
    with pytest.raises(CheckpointError, match=r"output\.dense\.weight\.scale is missing"):
        unpack(packed)


def test_parameters_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    GroundingDino(TINY).save_pretrained(tmp_path)
    values = {"model_type": "groundingml", **replace(TINY, known_names=4).to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(CheckpointError, match=r"proposals\.names\.names"):
        load_model(tmp_path)


def test_a_config_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='expected "model_type": "groundingml"'):
        config_from_native({"model_type": "bert"})
    (tmp_path / "config.json").write_text('{"model_type": "groundingml", "depth": 3}', "utf-8")
    with pytest.raises(CheckpointError, match="depth"):
        read_native(tmp_path)
