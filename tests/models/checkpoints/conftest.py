"""Checkpoints in the layouts of other software, made from models of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from groundingml.models.checkpoints.huggingface import to_huggingface_names
from groundingml.models.grounding_dino.config import BERT_BASE


@pytest.fixture(scope="session")
def key_list(shared_data: Path) -> Callable[[str], dict[str, Tensor]]:
    """Zeros with the names, shapes and dtypes of an official checkpoint, each of one element's memory."""

    def read(name: str) -> dict[str, Tensor]:
        keys = json.loads((shared_data / "models" / "keys" / f"{name}.json").read_text())["keys"]
        zeros = {
            key: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape)
            for key, (shape, dtype) in keys.items()
        }
        return {key.removeprefix("module."): tensor for key, tensor in zeros.items()}

    return read


@pytest.fixture
def published_sizes() -> dict[str, object]:
    """Changes to a small model so that shapes tell its config: 8 heads, BERT heads of width 64."""
    bert = BERT_BASE | {
        "vocab_size": 1200,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 40,
        "max_position_embeddings": 256,
    }
    return {
        "text_config": bert,
        "encoder_heads": 8,
        "decoder_heads": 8,
        "text_heads": 4,
        "fusion_heads": 4,
        "encoder_points": 1,
        "decoder_points": 2,
    }


# What the files of the original repository call things, as (Hugging Face, original). Applied in order.
# Written independently of the tables in groundingml.models.checkpoints, and in the other direction.
_ORIGINAL = (
    (
        r"model\.backbone\.conv_encoder\.model\.embeddings\.patch_embeddings\.projection",
        "backbone.0.patch_embed.proj",
    ),
    (r"model\.backbone\.conv_encoder\.model\.embeddings\.norm", "backbone.0.patch_embed.norm"),
    (r"model\.backbone\.conv_encoder\.model\.encoder\.layers", "backbone.0.layers"),
    (r"attention\.self\.relative_position_bias_table", "attn.relative_position_bias_table"),
    (r"attention\.self\.", "attn.qkv."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(backbone.*)output\.dense", r"\1mlp.fc2"),
    (r"model\.input_proj_vision", "input_proj"),
    (r"model\.text_projection", "feat_map"),
    (r"model\.level_embed", "transformer.level_embed"),
    (r"model\.encoder\.layers\.(\d+)\.fusion_layer", r"transformer.encoder.fusion_layers.\1"),
    (r"vision_param", "gamma_v"),
    (r"text_param", "gamma_l"),
    (r"layer_norm_vision", "layer_norm_v"),
    (r"layer_norm_text", "layer_norm_l"),
    (r"(values_|out_|attn\.)vision_proj", r"\1v_proj"),
    (r"(values_|out_|attn\.)text_proj", r"\1l_proj"),
    (r"model\.encoder\.layers\.(\d+)\.text_enhancer_layer", r"transformer.encoder.text_layers.\1"),
    (r"layer_norm_before", "norm1"),
    (r"layer_norm_after", "norm2"),
    (r"model\.encoder\.layers\.(\d+)\.deformable_layer", r"transformer.encoder.layers.\1"),
    (r"(transformer\.encoder.*)self_attn_layer_norm", r"\1norm1"),
    (r"(transformer\.encoder.*)final_layer_norm", r"\1norm2"),
    (r"model\.decoder\.layers", "transformer.decoder.layers"),
    (r"encoder_attn_text_layer_norm", "catext_norm"),
    (r"encoder_attn_text", "ca_text"),
    (r"encoder_attn_layer_norm", "norm1"),
    (r"encoder_attn", "cross_attn"),
    (r"self_attn_layer_norm", "norm2"),
    (r"final_layer_norm", "norm3"),
    (r"(transformer.*)fc1", r"\1linear1"),
    (r"(transformer.*)fc2", r"\1linear2"),
    (r"model\.decoder\.layer_norm", "transformer.decoder.norm"),
    (r"model\.decoder\.reference_points_head", "transformer.decoder.ref_point_head"),
    (r"model\.query_position_embeddings", "transformer.tgt_embed"),
    (r"model\.enc_output", "transformer.enc_output"),
    (r"model\.encoder_output_bbox_embed", "transformer.enc_out_bbox_embed"),
)


@pytest.fixture
def original_layout() -> Callable[..., dict[str, Tensor]]:
    """Turn a model's state into that of the original repository (without the prefix "module.")."""

    def convert(model: torch.nn.Module) -> dict[str, Tensor]:
        weights = {}
        for name, tensor in to_huggingface_names(model.state_dict()).items():
            for stage in model.config.backbone.out_stages:
                norm = f"model.backbone.conv_encoder.model.hidden_states_norms.stage{stage}."
                name = name.replace(norm, f"backbone.0.norm{stage - 1}.")
            if name.startswith("model.text_backbone."):
                name = name.replace("model.text_backbone.", "bert.")
            else:
                for pattern, replacement in _ORIGINAL:
                    name = re.sub(pattern, replacement, name)
            weights[name] = tensor
        weights = fuse(weights, "attn.qkv.{part}.{leaf}", "attn.qkv.{leaf}", ("query", "key", "value"))
        weights = fuse(weights, "{part}.{leaf}", "in_proj_{leaf}", ("query", "key", "value"), unless="bert.")
        for layer in range(model.config.decoder_layers):  # stored for every layer, and twice
            for k in range(3):
                for leaf in ("weight", "bias"):
                    head = 0 if model.config.share_box_head else layer
                    tensor = weights[f"bbox_embed.{head}.layers.{k}.{leaf}"]
                    weights[f"bbox_embed.{layer}.layers.{k}.{leaf}"] = tensor
                    weights[f"transformer.decoder.bbox_embed.{layer}.layers.{k}.{leaf}"] = tensor
        weights["bert.pooler.dense.weight"] = torch.zeros(64, 64)
        weights["bert.embeddings.position_ids"] = torch.arange(256)[None]
        return weights

    return convert


def fuse(
    weights: dict[str, Tensor],
    part_name: str,
    fused_name: str,
    parts: tuple[str, ...],
    unless: str = "no such",
) -> dict[str, Tensor]:
    """Concatenate three projections into one."""
    fused: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for leaf in ("weight", "bias"):
            ending = part_name.format(part=parts[0], leaf=leaf)
            if name.endswith(ending) and unless not in name:
                stem = name.removesuffix(ending)
                rows = [weights[stem + part_name.format(part=part, leaf=leaf)] for part in parts]
                fused[stem + fused_name.format(leaf=leaf)] = torch.cat(rows)
                break
        else:
            is_part = any(
                name.endswith(part_name.format(part=p, leaf=leaf))
                for p in parts
                for leaf in ("weight", "bias")
            )
            if not is_part or unless in name:
                fused[name] = tensor
    return fused
