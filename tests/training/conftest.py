"""A network small enough to train in seconds, its tokenizer, and pictures drawn for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import BertTokenizerFast

import groundingml
from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig
from groundingml.models.swin import SwinConfig

IMAGE_SIDE = 64


def tiny_config() -> GroundingDinoConfig:
    return GroundingDinoConfig(
        family="mm-grounding-dino",
        backbone=SwinConfig(
            embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=4, drop_path_rate=0.3
        ),
        text_config={
            "vocab_size": 30522,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 256,
        },
        d_model=32,
        num_levels=3,
        num_queries=20,
        encoder_layers=1,
        decoder_layers=2,
        encoder_heads=2,
        decoder_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        fusion_dim=32,
        fusion_heads=2,
        text_heads=2,
        text_ffn_dim=32,
        group_norm_groups=8,
        class_scale=32**-0.5,
        class_bias=True,
        share_class_head=False,
        share_box_head=False,
        image_size=(IMAGE_SIDE, IMAGE_SIDE),
    )


@pytest.fixture
def new_model() -> Callable[..., GroundingDino]:
    """new_model(seed=0): a network with random weights, always the same for a seed."""

    def make(seed: int = 0) -> GroundingDino:
        torch.manual_seed(seed)
        return GroundingDino(tiny_config())

    return make


@pytest.fixture
def model(new_model: Callable[..., GroundingDino]) -> GroundingDino:
    return new_model()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    file = Path(groundingml.__file__).parent / "embedded" / "nano" / "tokenizer.json"
    return BertTokenizerFast(tokenizer_file=str(file))


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """Three pictures: a red square; a blue square and a small red one; an empty one. In annotations.json as
    COCO."""
    drawings = [
        [("red square", "red", (8, 8, 40, 40))],
        [("blue square", "blue", (24, 16, 60, 52)), ("red square", "red", (2, 2, 18, 18))],
        [],
    ]
    images, annotations = [], []
    categories = [
        {"id": 1, "name": "red square"},
        {"id": 2, "name": "blue square"},
        {"id": 3, "name": "green dot"},
    ]
    for number, shapes in enumerate(drawings, start=1):
        picture = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), "gray")
        for name, color, (x0, y0, x1, y1) in shapes:
            ImageDraw.Draw(picture).rectangle((x0, y0, x1 - 1, y1 - 1), fill=color)
            category = next(c["id"] for c in categories if c["name"] == name)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
        picture.save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": IMAGE_SIDE, "height": IMAGE_SIDE})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path
