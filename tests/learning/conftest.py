"""Small annotated images, a detector that knows their boxes, and a tiny real network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from groundingml.inference import Detections
from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig
from groundingml.models.swin import SwinConfig
from groundingml.training import ImageRecord

Box = tuple[float, float, float, float]


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., ImageRecord]:
    """record([(box, name), ...], name="a.png") -> an image of 100 x 80 with these boxes."""

    def make(boxes: Sequence[tuple[Box, str]] = (), name: str = "a.png", **changes: Any) -> ImageRecord:
        path = tmp_path / name
        Image.new("RGB", (100, 80), "white").save(path)
        values: dict[str, Any] = {
            "path": path,
            "image_id": name,
            "width": 100,
            "height": 80,
            "boxes_xyxy": tuple(box for box, _ in boxes),
            "names": tuple(label for _, label in boxes),
            "weights": (1.0,) * len(boxes),
            "absent": (),
        }
        return ImageRecord(**{**values, **changes})

    return make


@pytest.fixture
def found() -> Callable[..., Detections]:
    """found((box, name, score), ...) -> detections in an image of 100 x 80, best first."""
    return _found


def _found(*boxes: tuple[Box, str, float]) -> Detections:
    ordered = sorted(boxes, key=lambda entry: -entry[2])
    names = list(dict.fromkeys(name for _, name, _ in ordered))
    return Detections(
        np.array([box for box, _, _ in ordered], dtype=np.float32).reshape(-1, 4),
        np.array([score for _, _, score in ordered], dtype=np.float32),
        [name for _, name, _ in ordered],
        np.array([names.index(name) for _, name, _ in ordered], dtype=np.int64),
        (80, 100),
        tuple(names),
    )


@pytest.fixture
def tiny_model() -> GroundingDino:
    """A Grounding DINO of a few thousand weights that transformers has a class for."""
    torch.manual_seed(0)
    bert = {"vocab_size": 30522, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 512}  # fmt: skip
    config = GroundingDinoConfig(
        backbone=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4),
        text_config=bert,
        d_model=32,
        num_queries=20,
        encoder_layers=1,
        decoder_layers=2,
        encoder_heads=2,
        decoder_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=16,
        fusion_dim=16,
        fusion_heads=1,
        text_heads=1,
        text_ffn_dim=16,
        image_size=(128, 192),
    )
    return GroundingDino(config).eval()
