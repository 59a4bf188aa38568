"""The Hugging Face layout, both ways: model types "grounding-dino" and "mm-grounding-dino" (also LLMDet).

Names are those of the files on the hub. transformers itself names Swin's parameters otherwise while a model
is in memory; those names are read too, so that `torch.save(model.state_dict())` of a transformers model can
be loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from groundingml.models.checkpoints.renaming import rename
from groundingml.models.grounding_dino.config import BERT_BASE, GroundingDinoConfig
from groundingml.models.swin import SwinConfig

if TYPE_CHECKING:
    from groundingml.models.grounding_dino.network import GroundingDino

MODEL_TYPES = ("grounding-dino", "mm-grounding-dino")

_SWIN = "model.backbone.conv_encoder.model"
_BLOCK = f"{_SWIN}.encoder.layers.{{i}}.blocks.{{j}}"
_OUR_BLOCK = "backbone.stages.{i}.blocks.{j}"
_ENHANCER = "model.encoder.layers.{i}"
_DECODER = "model.decoder.layers.{i}"

# Hugging Face name -> our name. Each side names a parameter once, so the table is read in both directions.
NAMES = {
    # image backbone; `qkv` is query, key and value merged
    f"{_SWIN}.embeddings.patch_embeddings.projection.*": "backbone.patch_embedding.*",
    f"{_SWIN}.embeddings.norm.*": "backbone.patch_norm.*",
    f"{_BLOCK}.layernorm_before.*": f"{_OUR_BLOCK}.norm1.*",
    f"{_BLOCK}.attention.self.qkv.*": f"{_OUR_BLOCK}.attention.qkv.*",
    f"{_BLOCK}.attention.self.relative_position_bias_table": (
        f"{_OUR_BLOCK}.attention.relative_position_bias_table"
    ),
    f"{_BLOCK}.attention.output.dense.*": f"{_OUR_BLOCK}.attention.projection.*",
    f"{_BLOCK}.layernorm_after.*": f"{_OUR_BLOCK}.norm2.*",
    f"{_BLOCK}.intermediate.dense.*": f"{_OUR_BLOCK}.mlp.fc1.*",
    f"{_BLOCK}.output.dense.*": f"{_OUR_BLOCK}.mlp.fc2.*",
    f"{_SWIN}.encoder.layers.{{i}}.downsample.*": "backbone.stages.{i}.downsample.*",
    f"{_SWIN}.hidden_states_norms.*": "backbone.output_norms.*",
    "model.input_proj_vision.{i}.0.*": "input_projections.{i}.convolution.*",
    "model.input_proj_vision.{i}.1.*": "input_projections.{i}.norm.*",
    "model.level_embed": "level_embedding",
    # text
    "model.text_backbone.*": "text_encoder.bert.*",
    "model.text_projection.*": "text_encoder.projection.*",
    # enhancer: fusion, text layer, image layer
    f"{_ENHANCER}.fusion_layer.layer_norm_vision.*": "enhancer.layers.{i}.fusion.image_norm.*",
    f"{_ENHANCER}.fusion_layer.layer_norm_text.*": "enhancer.layers.{i}.fusion.text_norm.*",
    f"{_ENHANCER}.fusion_layer.attn.vision_proj.*": "enhancer.layers.{i}.fusion.image_query.*",
    f"{_ENHANCER}.fusion_layer.attn.text_proj.*": "enhancer.layers.{i}.fusion.text_key.*",
    f"{_ENHANCER}.fusion_layer.attn.values_vision_proj.*": "enhancer.layers.{i}.fusion.image_value.*",
    f"{_ENHANCER}.fusion_layer.attn.values_text_proj.*": "enhancer.layers.{i}.fusion.text_value.*",
    f"{_ENHANCER}.fusion_layer.attn.out_vision_proj.*": "enhancer.layers.{i}.fusion.image_output.*",
    f"{_ENHANCER}.fusion_layer.attn.out_text_proj.*": "enhancer.layers.{i}.fusion.text_output.*",
    f"{_ENHANCER}.fusion_layer.vision_param": "enhancer.layers.{i}.fusion.image_scale",
    f"{_ENHANCER}.fusion_layer.text_param": "enhancer.layers.{i}.fusion.text_scale",
    f"{_ENHANCER}.text_enhancer_layer.self_attn.out_proj.*": "enhancer.layers.{i}.text.attention.output.*",
    f"{_ENHANCER}.text_enhancer_layer.self_attn.*": "enhancer.layers.{i}.text.attention.*",
    f"{_ENHANCER}.text_enhancer_layer.layer_norm_before.*": "enhancer.layers.{i}.text.attention_norm.*",
    f"{_ENHANCER}.text_enhancer_layer.layer_norm_after.*": "enhancer.layers.{i}.text.ffn_norm.*",
    f"{_ENHANCER}.text_enhancer_layer.*": "enhancer.layers.{i}.text.ffn.*",
    f"{_ENHANCER}.deformable_layer.self_attn.value_proj.*": "enhancer.layers.{i}.image.attention.value.*",
    f"{_ENHANCER}.deformable_layer.self_attn.output_proj.*": "enhancer.layers.{i}.image.attention.output.*",
    f"{_ENHANCER}.deformable_layer.self_attn.*": "enhancer.layers.{i}.image.attention.*",
    f"{_ENHANCER}.deformable_layer.self_attn_layer_norm.*": "enhancer.layers.{i}.image.attention_norm.*",
    f"{_ENHANCER}.deformable_layer.final_layer_norm.*": "enhancer.layers.{i}.image.ffn_norm.*",
    f"{_ENHANCER}.deformable_layer.*": "enhancer.layers.{i}.image.ffn.*",
    # query selection
    "model.enc_output.*": "proposals.projection.*",
    "model.enc_output_norm.*": "proposals.norm.*",
    "model.encoder_output_bbox_embed.*": "proposals.box_head.*",
    "model.encoder_output_class_embed.*": "proposals.class_head.*",
    "model.query_position_embeddings.*": "query_embedding.*",
    # decoder
    f"{_DECODER}.self_attn.out_proj.*": "decoder.layers.{i}.self_attention.output.*",
    f"{_DECODER}.self_attn.*": "decoder.layers.{i}.self_attention.*",
    f"{_DECODER}.self_attn_layer_norm.*": "decoder.layers.{i}.self_attention_norm.*",
    f"{_DECODER}.encoder_attn_text.out_proj.*": "decoder.layers.{i}.text_attention.output.*",
    f"{_DECODER}.encoder_attn_text.*": "decoder.layers.{i}.text_attention.*",
    f"{_DECODER}.encoder_attn_text_layer_norm.*": "decoder.layers.{i}.text_attention_norm.*",
    f"{_DECODER}.encoder_attn.value_proj.*": "decoder.layers.{i}.image_attention.value.*",
    f"{_DECODER}.encoder_attn.output_proj.*": "decoder.layers.{i}.image_attention.output.*",
    f"{_DECODER}.encoder_attn.*": "decoder.layers.{i}.image_attention.*",
    f"{_DECODER}.encoder_attn_layer_norm.*": "decoder.layers.{i}.image_attention_norm.*",
    f"{_DECODER}.final_layer_norm.*": "decoder.layers.{i}.ffn_norm.*",
    f"{_DECODER}.*": "decoder.layers.{i}.ffn.*",
    "model.decoder.layer_norm.*": "decoder.norm.*",
    "model.decoder.reference_points_head.*": "decoder.query_position.*",
    "bbox_embed.*": "heads.box_heads.*",
    "class_embed.*": "heads.class_heads.*",
}

# transformers' names in memory -> names on disk.
_IN_MEMORY = (
    (".conv_encoder.model.swin.", ".conv_encoder.model."),
    (".attention.q_proj.", ".attention.self.query."),
    (".attention.k_proj.", ".attention.self.key."),
    (".attention.v_proj.", ".attention.self.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".attention.relative_position_bias.relative_position", ".attention.self.relative_position"),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)

# Copies of other parameters, and buffers that are computed, which some uploads contain.
_REDUNDANT = (
    r"model\.decoder\.bbox_embed\..*",
    r"model\.decoder\.class_embed\..*",
    r".*\.relative_position_index",
    r"model\.backbone\.conv_encoder\.model\.layernorm\.(weight|bias)",
    r"model\.text_backbone\.embeddings\.(position_ids|token_type_ids)",
    r"model\.text_backbone\.pooler\..*",
    r"model\.special_tokens",
)

_QKV = re.compile(
    r"(?P<block>.*\.blocks\.\d+\.attention\.self)\.(?P<part>query|key|value)\.(?P<leaf>weight|bias)"
)
_PARTS = ("query", "key", "value")


def from_huggingface_names(weights: Mapping[str, Tensor], config: GroundingDinoConfig) -> dict[str, Tensor]:
    """Parameters under our names. Redundant ones are dropped, unknown ones keep their name to be reported."""
    dropped = list(_REDUNDANT)
    if config.share_box_head:
        dropped.append(r"bbox_embed\.[1-9][0-9]*\..*")
    if config.share_class_head:
        dropped.append(r"class_embed\.[1-9][0-9]*\..*")
    on_disk = {_name_on_disk(name): tensor for name, tensor in weights.items()}
    renamed = rename(_merge_qkv(on_disk), NAMES, dropped)
    return renamed.weights | {name: on_disk[name] for name in renamed.unknown}


def to_huggingface_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_huggingface_names`; parameters that several layers share are written once.

    Raises:
        ValueError: parameters that the layout has no place for.
    """
    renamed = rename(weights, {ours: theirs for theirs, ours in NAMES.items()})
    if renamed.unknown:
        raise ValueError(f"the Hugging Face layout has no place for {', '.join(renamed.unknown[:5])}")
    return _split_qkv(renamed.weights)


def _name_on_disk(name: str) -> str:
    if ".backbone.conv_encoder." in name:
        for in_memory, on_disk in _IN_MEMORY:
            name = name.replace(in_memory, on_disk)
    return name


def _merge_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Swin's query, key and value become one `qkv`; a part without its fellows keeps its name."""
    merged: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = _QKV.fullmatch(name)
        names = [f"{match['block']}.{part}.{match['leaf']}" for part in _PARTS] if match else []
        if match is None or not all(part in weights for part in names):
            merged[name] = tensor
        elif match["part"] == "query":
            merged[f"{match['block']}.qkv.{match['leaf']}"] = torch.cat([weights[part] for part in names])
    return merged


def _split_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".attention.self.qkv." in name:
            for part, rows in zip(_PARTS, tensor.chunk(3), strict=True):
                split[name.replace(".qkv.", f".{part}.")] = rows.clone()
        else:
            split[name] = tensor
    return split


def config_from_huggingface(values: Mapping[str, Any]) -> GroundingDinoConfig:
    """Read the dict of a `config.json`; fields that it leaves out have transformers' defaults.

    Raises:
        ValueError: another model type, or a variant that this network does not implement.
    """
    family = values.get("model_type")
    if family not in MODEL_TYPES:
        raise ValueError(f"model_type is {family!r}; expected one of {', '.join(map(repr, MODEL_TYPES))}")
    _require(values, "config.json", {
        "two_stage": True, "position_embedding_type": "sine", "activation_function": "relu", "query_dim": 4,
        "two_stage_bbox_embed_share": False,
    })  # fmt: skip
    mm = family == "mm-grounding-dino"
    d_model = int(values.get("d_model", 256))
    encoder_heads = int(values.get("encoder_attention_heads", 8))
    encoder_ffn_dim = int(values.get("encoder_ffn_dim", 2048))
    start = GroundingDinoConfig.mm_grounding_dino_tiny() if mm else GroundingDinoConfig.grounding_dino_tiny()
    text_config = BERT_BASE | {k: v for k, v in (values.get("text_config") or {}).items() if k in BERT_BASE}
    config = replace(
        start,
        backbone=_swin_from_huggingface(values.get("backbone_config") or {}),
        text_config=text_config,
        d_model=d_model,
        num_levels=int(values.get("num_feature_levels", 4)),
        num_queries=int(values.get("num_queries", 900)),
        encoder_layers=int(values.get("encoder_layers", 6)),
        decoder_layers=int(values.get("decoder_layers", 6)),
        encoder_heads=encoder_heads,
        decoder_heads=int(values.get("decoder_attention_heads", 8)),
        encoder_ffn_dim=encoder_ffn_dim,
        decoder_ffn_dim=int(values.get("decoder_ffn_dim", 2048)),
        encoder_points=int(values.get("encoder_n_points", 4)),
        decoder_points=int(values.get("decoder_n_points", 4)),
        fusion_dim=encoder_ffn_dim // 2,
        fusion_heads=encoder_heads // 2,
        fusion_drop_path=float(values.get("fusion_droppath", 0.1)),
        text_heads=encoder_heads // 2,
        text_ffn_dim=encoder_ffn_dim // 2,
        position_temperature=float(values.get("positional_embedding_temperature", 20)),
        layer_norm_eps=float(values.get("layer_norm_eps", 1e-5)),
        class_scale=d_model**-0.5 if mm else 1.0,
        share_box_head=bool(values.get("decoder_bbox_embed_share", True)),
        share_class_head=bool(values.get("decoder_cls_embed_share", True)) if mm else True,
        query_content="learned" if values.get("embedding_init_target", True) else "proposals",
        max_text_len=int(values.get("max_text_len", 256)),
    )
    ours = values.get("groundingml") or {}
    return replace(config, **{name: ours[name] for name in _OUR_FIELDS if name in ours})


def config_to_huggingface(config: GroundingDinoConfig) -> dict[str, Any]:
    """The dict of a `config.json` for transformers; what it has no field for is under "groundingml".

    Dropout is written as 0: so were the official models trained (transformers' default is 0.1).

    Raises:
        ValueError: a model that transformers has no class for.
    """
    derived = {
        "fusion_dim": config.encoder_ffn_dim // 2,
        "fusion_heads": config.encoder_heads // 2,
        "text_heads": config.encoder_heads // 2,
        "text_ffn_dim": config.encoder_ffn_dim // 2,
        "class_scale": config.d_model**-0.5 if config.family == "mm-grounding-dino" else 1.0,
        "class_bias": config.family == "mm-grounding-dino",
        "group_norm_groups": 32,
        "proposals": "two_stage",
        "delimiter_token_ids": (101, 102, 1012, 1029),
    }
    other = [
        f"{name}={getattr(config, name)!r}"
        for name, value in derived.items()
        if getattr(config, name) != value
    ]
    if config.family not in MODEL_TYPES or not isinstance(config.backbone, SwinConfig) or other:
        reason = ", ".join(other) or f"family={config.family!r} with a {type(config.backbone).__name__}"
        raise ValueError(f"transformers has no model of this kind ({reason}); save it in the native layout")
    swin = config.backbone
    values: dict[str, Any] = {
        "model_type": config.family,
        "architectures": [_ARCHITECTURES[config.family]],
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": swin.embed_dim,
            "depths": list(swin.depths),
            "num_heads": list(swin.num_heads),
            "window_size": swin.window_size,
            "mlp_ratio": swin.mlp_ratio,
            "patch_size": swin.patch_size,
            "drop_path_rate": swin.drop_path_rate,
            "layer_norm_eps": swin.layer_norm_eps,
            "out_indices": list(swin.out_stages),
            "out_features": [f"stage{stage}" for stage in swin.out_stages],
        },
        "text_config": {"model_type": "bert", **config.text_config},
        "d_model": config.d_model,
        "num_feature_levels": config.num_levels,
        "num_queries": config.num_queries,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.encoder_heads,
        "decoder_attention_heads": config.decoder_heads,
        "encoder_ffn_dim": config.encoder_ffn_dim,
        "decoder_ffn_dim": config.decoder_ffn_dim,
        "encoder_n_points": config.encoder_points,
        "decoder_n_points": config.decoder_points,
        "fusion_droppath": config.fusion_drop_path,
        "dropout": 0.0,
        "positional_embedding_temperature": int(config.position_temperature),
        "layer_norm_eps": config.layer_norm_eps,
        "decoder_bbox_embed_share": config.share_box_head,
        "embedding_init_target": config.query_content == "learned",
        "max_text_len": config.max_text_len,
        "groundingml": {name: getattr(config, name) for name in _OUR_FIELDS},
    }
    if config.family == "mm-grounding-dino":
        values["decoder_cls_embed_share"] = config.share_class_head
    return values


def save_huggingface(model: GroundingDino, folder: str | Path) -> None:
    """Write `config.json`, `preprocessor_config.json` and `model.safetensors`, which transformers loads.

    Raises:
        ValueError: a model that transformers has no class for.
    """
    from safetensors.torch import save_file

    config = config_to_huggingface(model.config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(to_huggingface_names(weights), folder / "model.safetensors", metadata={"format": "pt"})
    preprocessor = {
        "image_processor_type": "GroundingDinoImageProcessor",
        "size": {"shortest_edge": model.config.image_size[0], "longest_edge": model.config.image_size[1]},
        "image_mean": list(model.config.image_mean),
        "image_std": list(model.config.image_std),
    }
    for name, values in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


_ARCHITECTURES = {
    "grounding-dino": "GroundingDinoForObjectDetection",
    "mm-grounding-dino": "MMGroundingDinoForObjectDetection",
}
_OUR_FIELDS = (
    "decoder_eps",
    "head_eps",
    "image_size",
    "image_mean",
    "image_std",
    "score_aggregation",
    "default_threshold",
)


def _swin_from_huggingface(values: Mapping[str, Any]) -> SwinConfig:
    required = {
        "model_type": "swin",
        "qkv_bias": True,
        "use_absolute_embeddings": False,
        "hidden_act": "gelu",
    }
    _require(values, "backbone_config", {**required, "num_channels": 3})
    same = {field.name for field in fields(SwinConfig)} - {"out_stages"}
    out_stages = values.get("out_indices") or [
        int(str(name).removeprefix("stage"))
        for name in values.get("out_features") or ("stage2", "stage3", "stage4")
    ]
    return SwinConfig(**{k: v for k, v in values.items() if k in same}, out_stages=tuple(out_stages))


def _require(values: Mapping[str, Any], where: str, expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise ValueError(f"{where}: {name}={values[name]!r} is not supported, only {value!r} is")
