"""`groundingml detect` with a GLIP file, in the original's layout and random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from groundingml.cli.app import app
from groundingml.models.checkpoints.glip import to_glip_names
from groundingml.models.glip import Glip, GlipConfig
from groundingml.models.grounding_dino.config import BERT_BASE
from groundingml.models.swin import SwinConfig


@pytest.fixture(scope="session")
def glip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = GlipConfig(
        backbone=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4),
        text_config=BERT_BASE
        | {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16},
        d_model=32,
        tower_layers=1,
        fused=False,
    )
    model = Glip(config)
    torch.nn.init.zeros_(model.head.bias)
    file = tmp_path_factory.mktemp("glip") / "glip_a_tiny_o365.pth"
    weights = {f"module.{name}": tensor for name, tensor in to_glip_names(model.state_dict()).items()}
    torch.save({"model": weights}, file)
    return file


@pytest.mark.parametrize("question", [("--labels", "cat, sofa"), ("--caption", "a cat on a sofa")])
def test_detect(glip_file: Path, photos: Path, question: tuple[str, str]) -> None:
    arguments = [
        "detect",
        str(photos / "cat.jpg"),
        *question,
        "--threshold",
        "0",
        "--json",
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, [*arguments, "--model", str(glip_file)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["errors"] == []
    found = report["images"][0]["detections"]
    assert 0 < len(found) <= 100
    assert {detection["label"] for detection in found} <= {"cat", "sofa"}
