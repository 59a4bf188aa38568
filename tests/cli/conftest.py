"""A small random model in a folder, so that the commands load and run a real one in no time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from groundingml.models.checkpoints.native import save_native
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.swin import SwinConfig


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4),
        text_config={
            "vocab_size": 30522,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 512,
        },
        d_model=32,
        num_queries=10,
        encoder_layers=1,
        decoder_layers=1,
        encoder_heads=4,
        decoder_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        fusion_dim=16,
        fusion_heads=2,
        text_heads=2,
        text_ffn_dim=16,
        image_size=(64, 96),
    )
    folder = tmp_path_factory.mktemp("small model")
    save_native(GroundingDino(config), folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path, photo_dir: Path) -> Path:
    """A folder with two small photos, one below the other, and things that are no photos."""
    from PIL import Image

    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    Image.open(photo_dir / "cat.jpg").resize((120, 80)).save(folder / "cat.jpg")
    Image.open(photo_dir / "coffee.jpg").resize((120, 80)).save(folder / "below" / "coffee.PNG")
    (folder / "notes.txt").write_text("not a photo")
    (folder / "cat.detected.jpg").write_bytes((folder / "cat.jpg").read_bytes())
    return folder
