"""A small GLIP-T (A) as its authors' code computed it: weights made from their names, and what came out."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from groundingml.models.checkpoints.glip import from_glip_names
from groundingml.models.glip import Glip, GlipConfig
from groundingml.models.grounding_dino.config import BERT_BASE
from groundingml.models.swin import SwinConfig

DATA = Path(__file__).parent / "data"

SMALL = GlipConfig(
    backbone=SwinConfig(embed_dim=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=4),
    text_config=BERT_BASE
    | {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
    d_model=64,
    tower_layers=2,
    fused=False,
)


@dataclass(frozen=True)
class Reference:
    """What microsoft/GLIP returned for two images on one canvas, and what it was given."""

    spec: dict[str, object]
    arrays: dict[str, Tensor]
    weights: dict[str, Tensor]
    """Under the original's names."""
    pixel_values: Tensor
    """(2, 3, 128, 160) RGB, zero in the padding."""
    pixel_mask: Tensor
    """(2, 128, 160) bool."""

    @property
    def text(self) -> tuple[Tensor, Tensor]:
        return self.arrays["input_ids"], self.arrays["attention_mask"]


@pytest.fixture(scope="session")
def reference() -> Reference:
    spec = json.loads((DATA / "glip_a_small.json").read_text())
    with np.load(DATA / "glip_a_small.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    height, width = spec["canvas"]
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    for row, (h, w) in enumerate(spec["sizes"]):
        mask[row, :h, :w] = True
    bgr = torch.from_numpy(_image((2, 3, height, width), spec["seed"])) * mask.unsqueeze(1)
    weights = {
        name: torch.from_numpy(_parameter(name, shape, spec["seed"])) for name, shape in spec["keys"].items()
    }
    return Reference(spec, arrays, weights, bgr.flip(1), mask)


@pytest.fixture(scope="session")
def reference_model(reference: Reference) -> Glip:
    model = Glip(SMALL)
    model.load_state_dict(from_glip_names(reference.weights))
    return model.eval()


@dataclass(frozen=True)
class TowerReference:
    """What MMDetection's head of GLIP-T, with two layers and fusion, made of these maps and this text."""

    tolerance: float
    weights: dict[str, Tensor]
    """Under MMDetection's names."""
    maps: tuple[Tensor, ...]
    text: Tensor
    text_mask: Tensor
    logits: Tensor
    box_deltas: Tensor
    centerness_logits: Tensor


@pytest.fixture(scope="session")
def tower_reference() -> TowerReference:
    spec = json.loads((DATA / "glip_fused_tower.json").read_text())
    with np.load(DATA / "glip_fused_tower.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return TowerReference(
        tolerance=spec["tolerance"],
        weights={name: torch.from_numpy(_parameter(name, shape, 0)) for name, shape in spec["keys"].items()},
        maps=tuple(_noise(f"map {level}", [2, 256, *size]) for level, size in enumerate(spec["sizes"])),
        text=_noise("text", [2, len(spec["text_mask"][0]), 768]),
        text_mask=torch.tensor(spec["text_mask"], dtype=torch.bool),
        **arrays,
    )


@pytest.fixture
def fused_config() -> GlipConfig:
    """A tiny model with everything that GLIP-T has."""
    return GlipConfig(
        backbone=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4),
        text_config=BERT_BASE
        | {"vocab_size": 1100, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
        | {"intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        d_model=32,
        tower_layers=2,
        fusion_dim=32,
        group_norm_groups=16,
    )


def _generator(name: str, seed: int) -> np.random.Generator:
    """Philox counts, so that the numbers are the same everywhere; the name is part of the key."""
    return np.random.Generator(np.random.Philox(key=(seed << 32) | zlib.crc32(name.encode())))


def _noise(name: str, shape: list[int]) -> Tensor:
    noise: NDArray[np.float32] = _generator(name, 0).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(noise)


def _parameter(name: str, shape: list[int], seed: int) -> NDArray[np.float32]:
    """Values that keep activations near 1, by the parameter's (original) name."""
    noise = _generator(name, seed).standard_normal(tuple(shape), dtype=np.float32)
    mean, deviation = _mean_and_deviation(name, shape)
    return np.asarray(np.float32(mean) + np.float32(deviation) * noise)


def _mean_and_deviation(name: str, shape: list[int]) -> tuple[float, float]:
    leaf = name.rpartition(".")[2]
    if shape in ([], [1]):
        single = {"log_scale": (0.3, 0.1), "scale": (1.0, 0.1), "bias0": (-2.5, 0.1), "bias": (0.0, 0.3)}
        return single[leaf]
    if len(shape) == 1:
        scales = {"weight": (1.0, 0.1), "gamma_v": (0.4, 0.1), "gamma_l": (0.4, 0.1), "bias_lang": (0.0, 0.3)}
        return scales.get(leaf, (0.0, 0.05))
    if leaf == "relative_position_bias_table" or "embeddings." in name:
        return 0.0, 0.5
    gains = {"bbox_pred": 0.5, "dot_product_projection_text": 6.0, "centerness": 2.0, "offset": 0.7}
    return 0.0, float(gains.get(name.split(".")[-2], 1.0) / np.sqrt(np.prod(shape[1:])))


def _image(shape: tuple[int, int, int, int], seed: int) -> NDArray[np.float32]:
    """Waves and noise, (B, 3, H, W)."""
    generator = _generator("image", seed)
    batch, channels, height, width = shape
    rows, columns = np.meshgrid(
        np.linspace(0, 1, height, dtype=np.float32),
        np.linspace(0, 1, width, dtype=np.float32),
        indexing="ij",
    )
    out = np.zeros(shape, np.float32)
    for place in np.ndindex(batch, channels):
        for _ in range(4):
            across, down, phase, size = (
                generator.uniform(*limits) for limits in ((0.5, 6), (0.5, 6), (0, 6.28), (0.2, 0.6))
            )
            wave = np.float32(6.28) * (np.float32(across) * columns + np.float32(down) * rows)
            out[place] += np.float32(size) * np.sin(wave + np.float32(phase))
    noise: NDArray[np.float32] = generator.standard_normal(shape, dtype=np.float32)
    return out + np.float32(0.3) * noise
