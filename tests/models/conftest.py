"""Small models of every family, and transformers' own as the reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from groundingml.models.checkpoints.huggingface import (
    config_from_huggingface,
    config_to_huggingface,
    from_huggingface_names,
)
from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig
from groundingml.models.swin import SwinConfig

SMALL_BERT = {
    "vocab_size": 1200,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 256,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def small_config(family: str, levels: int = 4) -> GroundingDinoConfig:
    """A model of a few thousand weights with the conventions of its family; five levels begin at stage 1."""
    official = {
        "grounding-dino": GroundingDinoConfig.grounding_dino_tiny,
        "mm-grounding-dino": GroundingDinoConfig.mm_grounding_dino_tiny,
        "llmdet": GroundingDinoConfig.llmdet_tiny,
    }[family]()
    return replace(
        official,
        backbone=SwinConfig(
            embed_dim=12,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 3, 4),
            window_size=4,
            out_stages=(1, 2, 3, 4) if levels == 5 else (2, 3, 4),
        ),
        text_config=dict(SMALL_BERT),
        d_model=32,
        num_levels=levels,
        num_queries=30,
        encoder_layers=2,
        decoder_layers=3,
        encoder_heads=4,
        decoder_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=56,
        encoder_points=2,
        decoder_points=3,
        fusion_dim=24,
        fusion_heads=2,
        text_heads=2,
        text_ffn_dim=24,
        class_scale=1.0 if official.class_scale == 1.0 else 32**-0.5,
    )


def randomise(model: nn.Module, seed: int = 0, last_norms: float = 1.0) -> nn.Module:
    """Give every parameter, biases and layer scales too, a value that matters; keep activations near 1.

    last_norms: gain of the norms whose outputs meet in the class logits; less than 1 keeps logits small.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            last = ("decoder.layer_norm.weight", "enc_output_norm.weight", ".layer_norm_after.weight")
            value = (1.0 + 0.1 * noise) * (last_norms if name.endswith(last) else 1.0)
        elif name.endswith(("vision_param", "text_param", "_scale")):
            value = 0.5 + 0.2 * noise
        elif name.endswith("sampling_offsets.bias"):
            value = 1.5 * noise
        elif "class_embed" in name or "class_head" in name:
            value = -1.5 + 0.5 * noise
        elif parameter.ndim < 2:
            value = 0.1 * noise
        elif "bias_table" in name or ("embed" in name and "patch" not in name and "bbox" not in name):
            value = 0.6 * noise
        else:
            value = noise / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)
    return model.eval()


@dataclass
class ReferencePair:
    """transformers' model and ours, with equal weights."""

    theirs: nn.Module
    ours: GroundingDino


def build_pair(config: GroundingDinoConfig, seed: int = 0, last_norms: float = 1.0) -> ReferencePair:
    """Both models with the same random weights; ours takes transformers' eps of 1e-5."""
    import transformers

    values = copy.deepcopy(config_to_huggingface(config))
    values.pop("groundingml")
    classes = {
        "grounding-dino": (transformers.GroundingDinoConfig, transformers.GroundingDinoForObjectDetection),
        "mm-grounding-dino": (
            transformers.MMGroundingDinoConfig,
            transformers.MMGroundingDinoForObjectDetection,
        ),
    }
    config_class, model_class = classes[config.family]
    theirs = randomise(model_class(config_class(**values)), seed, last_norms)
    # With eager attention transformers adds BERT's boolean mask to the scores instead of applying it.
    theirs.model.text_backbone.set_attn_implementation("sdpa")
    ours = GroundingDino(replace(config_from_huggingface(values), decoder_eps=1e-5, head_eps=1e-5)).eval()
    ours.load_state_dict(from_huggingface_names(theirs.state_dict(), ours.config))
    return ReferencePair(theirs, ours)


@dataclass
class Batch:
    """Inputs of both models."""

    pixel_values: Tensor
    pixel_mask: Tensor
    input_ids: Tensor
    attention_mask: Tensor

    def sample(self, index: int) -> Batch:
        """One sample as if it had come alone: cut to its own size and length."""
        height = int(self.pixel_mask[index, :, 0].sum())
        width = int(self.pixel_mask[index, 0].sum())
        length = int(self.attention_mask[index].sum())
        return Batch(
            self.pixel_values[index : index + 1, :, :height, :width],
            self.pixel_mask[index : index + 1, :height, :width],
            self.input_ids[index : index + 1, :length],
            self.attention_mask[index : index + 1, :length],
        )


def make_batch(sizes: list[tuple[int, int]], phrases: list[list[int]], seed: int = 1) -> Batch:
    """Images (height, width), padded to the largest; prompts of phrases of so many tokens each."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pixel_values = torch.zeros(len(sizes), 3, height, width)
    pixel_mask = torch.zeros(len(sizes), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes):
        pixel_values[index, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        pixel_mask[index, :h, :w] = True
    prompts = []
    for lengths in phrases:
        ids = [101]
        for length in lengths:
            ids += [*torch.randint(200, 1000, (length,), generator=generator).tolist(), 1012]
        prompts.append([*ids, 102])
    longest = max(map(len, prompts))
    input_ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in prompts])
    return Batch(pixel_values, pixel_mask, input_ids, (input_ids != 0).long())


@pytest.fixture(scope="session")
def reference_pair() -> Callable[..., ReferencePair]:
    """`build_pair`, for tests that compare with transformers."""
    return build_pair


@pytest.fixture(scope="session")
def config_of() -> Callable[..., GroundingDinoConfig]:
    """`small_config`."""
    return small_config


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., Batch]:
    """`make_batch`."""
    return make_batch


@pytest.fixture(scope="session")
def small_model() -> Callable[..., GroundingDino]:
    """Build one of our models with random weights, without transformers' for comparison."""

    def build(
        family: str = "mm-grounding-dino", levels: int = 4, seed: int = 0, **changes: object
    ) -> GroundingDino:
        model = GroundingDino(replace(small_config(family, levels), **changes))
        randomise(model, seed)
        return model

    return build
