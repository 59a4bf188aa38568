"""GLIP's checkpoints: of the original repository, microsoft/GLIP (``glip_tiny_model_o365_goldg.pth``), and of
MMDetection's reimplementation.

The tower is stored as one list. With fusion its entries come in threes: fusion, text layer, DyConv.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isqrt

from torch import Tensor

from groundingml.models.checkpoints.errors import CheckpointError, listed
from groundingml.models.checkpoints.mmdet import from_unfold_order
from groundingml.models.checkpoints.renaming import rename
from groundingml.models.checkpoints.sizes import BERT_HEAD_WIDTH, count_numbered, shape_of
from groundingml.models.glip.config import GlipConfig
from groundingml.models.grounding_dino.config import BERT_BASE
from groundingml.models.swin import SwinConfig

_TOWER = "rpn.head.dyhead_tower."
_BLOCK = "backbone.body.layers.{i}.blocks.{j}"
_OUR_BLOCK = "backbone.stages.{i}.blocks.{j}"
_LAYER = f"{_TOWER}{{i}}"
_FUSION = f"{_LAYER}.b_attn"

# Original name -> our name, with the entries of the tower counted by layer. Read in both directions.
TABLE = {
    # image backbone; the norm of stage i (counted from 0) is called norm<i>
    "backbone.body.patch_embed.proj.*": "backbone.patch_embedding.*",
    "backbone.body.patch_embed.norm.*": "backbone.patch_norm.*",
    f"{_BLOCK}.norm1.*": f"{_OUR_BLOCK}.norm1.*",
    f"{_BLOCK}.attn.qkv.*": f"{_OUR_BLOCK}.attention.qkv.*",
    f"{_BLOCK}.attn.relative_position_bias_table": f"{_OUR_BLOCK}.attention.relative_position_bias_table",
    f"{_BLOCK}.attn.proj.*": f"{_OUR_BLOCK}.attention.projection.*",
    f"{_BLOCK}.norm2.*": f"{_OUR_BLOCK}.norm2.*",
    f"{_BLOCK}.mlp.*": f"{_OUR_BLOCK}.mlp.*",
    "backbone.body.layers.{i}.downsample.*": "backbone.stages.{i}.downsample.*",
    **{f"backbone.body.norm{i}.*": f"backbone.output_norms.stage{i + 1}.*" for i in range(4)},
    # pyramid, whose first level is called 2
    **{f"backbone.fpn.fpn_inner{i + 2}.*": f"neck.lateral.{i}.*" for i in range(3)},
    **{f"backbone.fpn.fpn_layer{i + 2}.*": f"neck.output.{i}.*" for i in range(3)},
    "backbone.fpn.top_blocks.p6.*": "neck.extra.0.*",
    "backbone.fpn.top_blocks.p7.*": "neck.extra.1.*",
    # text
    "language_backbone.body.model.*": "text_encoder.bert.*",
    # tower: fusion (v for vision, l for language), text layer, DyConv
    f"{_FUSION}.gamma_v": "tower.{i}.fusion.image_scale",
    f"{_FUSION}.gamma_l": "tower.{i}.fusion.text_scale",
    f"{_FUSION}.layer_norm_v.*": "tower.{i}.fusion.image_norm.*",
    f"{_FUSION}.layer_norm_l.*": "tower.{i}.fusion.text_norm.*",
    f"{_FUSION}.attn.v_proj.*": "tower.{i}.fusion.image_query.*",
    f"{_FUSION}.attn.l_proj.*": "tower.{i}.fusion.text_key.*",
    f"{_FUSION}.attn.values_v_proj.*": "tower.{i}.fusion.image_value.*",
    f"{_FUSION}.attn.values_l_proj.*": "tower.{i}.fusion.text_value.*",
    f"{_FUSION}.attn.out_v_proj.*": "tower.{i}.fusion.image_output.*",
    f"{_FUSION}.attn.out_l_proj.*": "tower.{i}.fusion.text_output.*",
    f"{_LAYER}.attention.self.query.*": "tower.{i}.text.query.*",
    f"{_LAYER}.attention.self.key.*": "tower.{i}.text.key.*",
    f"{_LAYER}.attention.self.value.*": "tower.{i}.text.value.*",
    f"{_LAYER}.attention.output.dense.*": "tower.{i}.text.output.*",
    f"{_LAYER}.attention.output.LayerNorm.*": "tower.{i}.text.attention_norm.*",
    f"{_LAYER}.intermediate.dense.*": "tower.{i}.text.fc1.*",
    f"{_LAYER}.output.dense.*": "tower.{i}.text.fc2.*",
    f"{_LAYER}.output.LayerNorm.*": "tower.{i}.text.ffn_norm.*",
    f"{_LAYER}.DyConv.0.bn.*": "tower.{i}.image.from_above.norm.*",
    f"{_LAYER}.DyConv.1.bn.*": "tower.{i}.image.from_same.norm.*",
    f"{_LAYER}.DyConv.2.bn.*": "tower.{i}.image.from_below.norm.*",
    f"{_LAYER}.DyConv.0.conv.*": "tower.{i}.image.from_above.*",
    f"{_LAYER}.DyConv.1.conv.*": "tower.{i}.image.from_same.*",
    f"{_LAYER}.DyConv.2.conv.*": "tower.{i}.image.from_below.*",
    f"{_LAYER}.AttnConv.1.*": "tower.{i}.image.attention.*",
    f"{_LAYER}.relu.fc.0.*": "tower.{i}.image.rectifier.reduce.*",
    f"{_LAYER}.relu.fc.2.*": "tower.{i}.image.rectifier.expand.*",
    f"{_LAYER}.offset.*": "tower.{i}.image.offset.*",
    # heads
    "rpn.head.dot_product_projection_text.*": "head.text_projection.*",
    "rpn.head.log_scale": "head.log_scale",
    "rpn.head.bias_lang": "head.text_bias",
    "rpn.head.bias0": "head.bias",
    "rpn.head.bbox_pred.*": "head.box.*",
    "rpn.head.centerness.*": "head.centerness.*",
    "rpn.head.scales.{i}.scale": "head.box_scales.{i}",
}

DROPPED = (
    r".*\.(relative_position_index|position_ids|token_type_ids)",  # buffers that are computed
    r"language_backbone\.body\.model\.pooler\..*",  # the network reads the tokens, not the pooled sentence
    r"rpn\.head\.cls_logits\..*",  # scores of fixed classes, computed and never used
    r"rpn\.anchor_generator\..*",  # what `glip.anchors` computes
)

# MMDetection's name -> original name.
MMDET_TABLE = {
    "backbone.patch_embed.projection.*": "backbone.body.patch_embed.proj.*",
    "backbone.stages.{i}.blocks.{j}.attn.w_msa.*": f"{_BLOCK}.attn.*",
    "backbone.stages.{i}.blocks.{j}.ffn.layers.0.0.*": f"{_BLOCK}.mlp.fc1.*",
    "backbone.stages.{i}.blocks.{j}.ffn.layers.1.*": f"{_BLOCK}.mlp.fc2.*",
    "backbone.stages.{i}.*": "backbone.body.layers.{i}.*",
    "backbone.*": "backbone.body.*",
    **{f"neck.lateral_convs.{i}.conv.*": f"backbone.fpn.fpn_inner{i + 2}.*" for i in range(3)},
    **{f"neck.fpn_convs.{i}.conv.*": f"backbone.fpn.fpn_layer{i + 2}.*" for i in range(3)},
    "neck.fpn_convs.3.conv.*": "backbone.fpn.top_blocks.p6.*",
    "neck.fpn_convs.4.conv.*": "backbone.fpn.top_blocks.p7.*",
    "language_model.*": "*",
    "bbox_head.head.dyhead_tower.{i}.dyconvs.*": f"{_LAYER}.DyConv.*",
    "bbox_head.head.dyhead_tower.{i}.attnconv.*": f"{_LAYER}.AttnConv.*",
    "bbox_head.*": "rpn.*",
}


def is_glip(names: Iterable[str]) -> bool:
    """Whether these are names of GLIP, the original's or MMDetection's."""
    return any(name.startswith((_TOWER, "bbox_head.head.dyhead_tower.")) for name in names)


def from_glip_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of a GLIP checkpoint under our names, for images in RGB (the original's are BGR).

    Raises:
        CheckpointError: names that this format does not have.
    """
    if not any(name.startswith(_TOWER) for name in weights):
        weights = _from_mmdet(weights)
    renamed = rename({_by_layer(name, weights): tensor for name, tensor in weights.items()}, TABLE, DROPPED)
    if renamed.unknown:
        raise CheckpointError(
            f"the file looks like a GLIP checkpoint, but {len(renamed.unknown)} of its parameters are "
            f"unknown: {listed(renamed.unknown)}. It may come from a changed model (GLIPv2 or another fork)."
        )
    first = "backbone.patch_embedding.weight"
    if first in renamed.weights:
        renamed.weights[first] = renamed.weights[first].flip(1)
    return renamed.weights


def to_glip_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> the original's, with the entries of the tower counted by layer: for messages."""
    renamed = rename(weights, {ours: theirs for theirs, ours in TABLE.items()})
    return renamed.weights | {name: weights[name] for name in renamed.unknown}


def config_from_shapes(weights: Mapping[str, Tensor]) -> GlipConfig:
    """The config of ``weights`` (our names). What shapes do not show is as in the published models.

    Raises:
        CheckpointError: a parameter that is needed to tell the size is missing.
        ValueError: sizes that do not fit together.
    """
    fusion = "tower.0.fusion.image_query.weight"
    return GlipConfig(
        backbone=_swin_config(weights),
        text_config=_text_config(weights),
        d_model=shape_of(weights, "neck.lateral.0.weight")[0],
        tower_layers=count_numbered(weights, r"tower\.(\d+)\..*"),
        fused=fusion in weights,
        fusion_dim=shape_of(weights, fusion)[0] if fusion in weights else GlipConfig.fusion_dim,
    )


def _from_mmdet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = rename(weights, MMDET_TABLE, (r"data_preprocessor\..*",))
    found = renamed.weights | {name: weights[name] for name in renamed.unknown}
    return {name: _as_original(name, tensor) for name, tensor in found.items()}


def _as_original(name: str, tensor: Tensor) -> Tensor:
    if ".downsample." in name:
        return from_unfold_order(tensor)
    return tensor.reshape(1) if name.endswith(".scale") else tensor  # () in a file that mmdet trained


def _by_layer(name: str, names: Iterable[str]) -> str:
    """The name with the number of its layer in place of that of its entry in the tower."""
    if not name.startswith(_TOWER) or f"{_TOWER}0.b_attn.gamma_v" not in names:
        return name
    number, _, rest = name.removeprefix(_TOWER).partition(".")
    return f"{_TOWER}{int(number) // 3}.{rest}"


def _swin_config(weights: Mapping[str, Tensor]) -> SwinConfig:
    width, _, patch, _ = shape_of(weights, "backbone.patch_embedding.weight")
    stages = count_numbered(weights, r"backbone\.stages\.(\d+)\..*")
    tables = [
        shape_of(weights, f"backbone.stages.{stage}.blocks.0.attention.relative_position_bias_table")
        for stage in range(stages)
    ]
    return SwinConfig(
        embed_dim=width,
        depths=tuple(
            count_numbered(weights, rf"backbone\.stages\.{i}\.blocks\.(\d+)\..*") for i in range(stages)
        ),
        num_heads=tuple(heads for _, heads in tables),
        window_size=(isqrt(tables[0][0]) + 1) // 2,  # the table has (2 * window - 1) ** 2 rows
        mlp_ratio=shape_of(weights, "backbone.stages.0.blocks.0.mlp.fc1.weight")[0] / width,
        patch_size=patch,
        out_stages=tuple(
            i for i in range(1, stages + 1) if f"backbone.output_norms.stage{i}.weight" in weights
        ),
    )


def _text_config(weights: Mapping[str, Tensor]) -> dict[str, object]:
    bert = "text_encoder.bert"
    vocabulary, width = shape_of(weights, f"{bert}.embeddings.word_embeddings.weight")
    return BERT_BASE | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": count_numbered(weights, rf"{re.escape(bert)}\.encoder\.layer\.(\d+)\..*"),
        "num_attention_heads": max(width // BERT_HEAD_WIDTH, 1),
        "intermediate_size": shape_of(weights, f"{bert}.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": shape_of(weights, f"{bert}.embeddings.position_embeddings.weight")[0],
    }
