"""The config of a checkpoint that comes without one, read off the shapes of its parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from groundingml.models.checkpoints.errors import CheckpointError

HEADS = 8  # of deformable attention in every published model: shapes tell heads times points only
BERT_HEAD_WIDTH = 64

_SWIN = "model.backbone.conv_encoder.model"
_TEXT = "model.text_backbone"


def config_from_shapes(
    weights: Mapping[str, Tensor], encoder_heads: int = HEADS, decoder_heads: int = HEADS
) -> dict[str, Any]:
    """The Hugging Face config of ``weights`` (names of the Hugging Face layout).

    What shapes do not show is as in every published model: 8 heads, BERT heads of width 64.

    Raises:
        CheckpointError: a parameter that is needed to tell the size is missing.
    """
    class_bias = "class_embed.0.bias" in weights
    levels, width = shape_of(weights, "model.level_embed")
    image_layer = "model.encoder.layers.0.deformable_layer"
    return {
        "model_type": "mm-grounding-dino" if class_bias else "grounding-dino",
        "backbone_config": _swin_config(weights),
        "text_config": _text_config(weights),
        "d_model": width,
        "num_feature_levels": levels,
        "num_queries": shape_of(weights, "model.query_position_embeddings.weight")[0],
        "encoder_layers": count_numbered(weights, r"model\.encoder\.layers\.(\d+)\..*"),
        "decoder_layers": count_numbered(weights, r"model\.decoder\.layers\.(\d+)\..*"),
        "encoder_ffn_dim": shape_of(weights, f"{image_layer}.fc1.weight")[0],
        "decoder_ffn_dim": shape_of(weights, "model.decoder.layers.0.fc1.weight")[0],
        "encoder_attention_heads": encoder_heads,
        "decoder_attention_heads": decoder_heads,
        "encoder_n_points": _points(weights, f"{image_layer}.self_attn", levels, encoder_heads),
        "decoder_n_points": _points(weights, "model.decoder.layers.0.encoder_attn", levels, decoder_heads),
        "decoder_bbox_embed_share": not class_bias and _heads_are_shared(weights),
        "decoder_cls_embed_share": False,
    }


def _swin_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = shape_of(weights, f"{_SWIN}.embeddings.patch_embeddings.projection.weight")
    layers = f"{_SWIN}.encoder.layers"
    stages = count_numbered(weights, rf"{re.escape(layers)}\.(\d+)\..*")
    tables = [
        shape_of(weights, f"{layers}.{stage}.blocks.0.attention.self.relative_position_bias_table")
        for stage in range(stages)
    ]
    norm = f"{_SWIN}.hidden_states_norms.stage{{}}.weight"
    out = [stage for stage in range(1, stages + 1) if norm.format(stage) in weights]
    return {
        "model_type": "swin",
        "embed_dim": width,
        "patch_size": patch,
        "depths": [
            count_numbered(weights, rf"{re.escape(layers)}\.{stage}\.blocks\.(\d+)\..*")
            for stage in range(stages)
        ],
        "num_heads": [heads for _, heads in tables],
        "window_size": (isqrt(tables[0][0]) + 1) // 2,  # the table has (2 * window - 1) ** 2 rows
        "mlp_ratio": shape_of(weights, f"{layers}.0.blocks.0.intermediate.dense.weight")[0] / width,
        "out_features": [f"stage{stage}" for stage in out],
        "out_indices": out,
    }


def _text_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    vocabulary, width = shape_of(weights, f"{_TEXT}.embeddings.word_embeddings.weight")
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": count_numbered(weights, rf"{re.escape(_TEXT)}\.encoder\.layer\.(\d+)\..*"),
        "num_attention_heads": max(width // BERT_HEAD_WIDTH, 1),
        "intermediate_size": shape_of(weights, f"{_TEXT}.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": shape_of(weights, f"{_TEXT}.embeddings.position_embeddings.weight")[0],
        "type_vocab_size": shape_of(weights, f"{_TEXT}.embeddings.token_type_embeddings.weight")[0],
    }


def _heads_are_shared(weights: Mapping[str, Tensor]) -> bool:
    """Whether the box heads of the decoder layers are one: stored once, or as equal copies."""
    for name, tensor in weights.items():
        first = weights.get(re.sub(r"^bbox_embed\.\d+\.", "bbox_embed.0.", name))
        if name.startswith("bbox_embed.") and first is not None and not first.equal(tensor):
            return False
    return True


def _points(weights: Mapping[str, Tensor], attention: str, levels: int, heads: int) -> int:
    rows = shape_of(weights, f"{attention}.attention_weights.weight")[0]
    points, rest = divmod(rows, heads * levels)
    if rest:
        raise CheckpointError(
            f"{attention} has {rows} attention weights, no multiple of {heads} heads x {levels} levels: "
            "the model is not of the published kind, give its config"
        )
    return points


def count_numbered(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number that ``pattern`` captures in a name; 0 if none matches."""
    numbers = [int(match.group(1)) for match in map(re.compile(pattern).fullmatch, names) if match]
    return max(numbers, default=-1) + 1


def shape_of(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a parameter that has to be there, or a CheckpointError."""
    if name not in weights:
        raise CheckpointError(
            f"{name} is missing, so the model's size cannot be told; the file may be a part of a model"
        )
    return tuple(weights[name].shape)
