"""`groundingml detect` with the families of one network, in the layout that their authors publish, random."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from groundingml.cli.app import app
from groundingml.models.checkpoints.huggingface import save_huggingface
from groundingml.models.checkpoints.save import save_pretrained
from groundingml.models.efficientvit import EfficientVitConfig
from groundingml.models.grounding_dino.config import BERT_BASE, GroundingDinoConfig
from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.swin import SwinConfig


def small(family: str) -> GroundingDino:
    torch.manual_seed(0)
    bert = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    sizes = {
        "backbone": SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4),
        "text_config": BERT_BASE | bert, "d_model": 32, "num_queries": 10, "encoder_layers": 1,
        "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "fusion_dim": 16,
        "text_ffn_dim": 16, "image_size": (64, 96),
    }  # fmt: skip
    mm = {"class_bias": True, "class_scale": 32**-0.5, "share_class_head": False, "share_box_head": False}
    return GroundingDino(GroundingDinoConfig(family=family, **sizes, **(mm if "mm" in family else {})))


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_the_hub_s_layout(family: str, photos: Path, tmp_path: Path) -> None:
    save_huggingface(small(family), tmp_path / "model")
    report = detect(tmp_path / "model", photos)
    assert len(report["checkpoint"]) == 12


def test_edge(photos: Path, tmp_path: Path) -> None:
    """Without public weights: the folder that training writes."""
    torch.manual_seed(0)
    bert = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = replace(
        GroundingDinoConfig.edge(),
        backbone=EfficientVitConfig(widths=(8, 16, 16, 32, 32), depths=(1, 1, 1, 1, 1), head_dim=16),
        text_config=BERT_BASE | bert, d_model=32, num_queries=10, decoder_layers=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, fusion_dim=32, text_ffn_dim=32, group_norm_groups=8, image_size=(64, 96),
    )  # fmt: skip
    save_pretrained(GroundingDino(config), tmp_path / "model")
    detect(tmp_path / "model", photos)


def detect(model: Path, photos: Path) -> dict[str, object]:
    arguments = ["detect", str(photos / "cat.jpg"), "--labels", "cat, sofa", "--threshold", "0", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--model", str(model)])
    assert result.exit_code == 0, result.output
    report: dict[str, object] = json.loads(result.stdout)
    found = report["images"][0]["detections"]  # type: ignore[index]
    assert found
    assert {detection["label"] for detection in found} <= {"cat", "sofa"}
    return report
