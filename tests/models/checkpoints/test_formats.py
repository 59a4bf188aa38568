"""Every official checkpoint, by its list of names and shapes, becomes a model of ours, with nothing left."""

from __future__ import annotations

import pytest
import torch

from groundingml.models.checkpoints.errors import CheckpointError
from groundingml.models.checkpoints.formats import to_huggingface_names
from groundingml.models.checkpoints.huggingface import from_huggingface_names
from groundingml.models.checkpoints.sizes import config_from_shapes
from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig

OFFICIAL = {
    "hf_grounding_dino_tiny": GroundingDinoConfig.grounding_dino_tiny,
    "hf_grounding_dino_tiny_ondisk": GroundingDinoConfig.grounding_dino_tiny,
    "hf_grounding_dino_base": GroundingDinoConfig.grounding_dino_base,
    "hf_grounding_dino_base_ondisk": GroundingDinoConfig.grounding_dino_base,
    "hf_mm_grounding_dino_tiny": GroundingDinoConfig.mm_grounding_dino_tiny,
    "hf_mm_grounding_dino_tiny_ondisk": GroundingDinoConfig.mm_grounding_dino_tiny,
    "hf_mm_grounding_dino_base": GroundingDinoConfig.llmdet_base,
    "hf_mm_grounding_dino_base_ondisk": GroundingDinoConfig.mm_grounding_dino_base,
    "hf_mm_grounding_dino_large": GroundingDinoConfig.mm_grounding_dino_large,
    "hf_mm_grounding_dino_large_ondisk": GroundingDinoConfig.llmdet_large,
    "idea_groundingdino_T": GroundingDinoConfig.grounding_dino_tiny,
    "idea_groundingdino_B": GroundingDinoConfig.grounding_dino_base,
    "mmdet_gdino_T": GroundingDinoConfig.grounding_dino_tiny,
    "mmdet_gdino_B": GroundingDinoConfig.grounding_dino_base,
    "mmdet_mm_gdino_T": GroundingDinoConfig.mm_grounding_dino_tiny,
    "mmdet_mm_gdino_L": GroundingDinoConfig.mm_grounding_dino_large,
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_checkpoint_fits_exactly(key_list, name):
    config = OFFICIAL[name]()
    found = from_huggingface_names(to_huggingface_names(key_list(name)), config)
    with torch.device("meta"):
        expected = GroundingDino(config).state_dict()
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        name: tuple(t.shape) for name, t in expected.items()
    }


@pytest.mark.parametrize(
    "name", [name for name in OFFICIAL if not name.startswith("hf") or name.endswith("ondisk")]
)
def test_official_config_is_told_from_the_shapes(key_list, name):
    values = config_from_shapes(to_huggingface_names(key_list(name)))
    assert GroundingDinoConfig.from_dict(values) == OFFICIAL[name]()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("transformer.encoder.layers.0.self_attn.sampling_offsets.weight", "without a text branch"),
        ("bert.encoder.layer.0.output.dense.weight", "BERT"),
        ("layers.0.blocks.0.attn.relative_position_bias_table", "image backbone"),
        (
            "model.layers.0.mlp.down_proj.weight",
            "no known Grounding DINO format.*model.layers.0.mlp.down_proj",
        ),
    ],
)
def test_other_models_are_refused(key, said):
    with pytest.raises(CheckpointError, match=said):
        to_huggingface_names({key: torch.zeros(2, 2)})


def test_llmdet_drops_its_language_model_but_other_forks_are_refused(key_list):
    weights = key_list("mmdet_mm_gdino_T")
    expected = to_huggingface_names(weights).keys()
    extra = {"connector.0.weight": torch.zeros(2, 2)}
    assert (
        to_huggingface_names(weights | extra | {"lmm.model.norm.weight": torch.zeros(2)}).keys() == expected
    )
    with pytest.raises(CheckpointError, match=r"1 of its parameters are unknown: connector\.0\.weight"):
        to_huggingface_names(weights | extra)
    with pytest.raises(CheckpointError, match=r"unknown: adapter\.weight"):
        to_huggingface_names(key_list("idea_groundingdino_T") | {"adapter.weight": torch.zeros(2)})
