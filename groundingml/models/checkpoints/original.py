"""Checkpoints of the original repository, IDEA-Research/GroundingDINO (``groundingdino_swint_ogc.pth``).

The file holds ``{"model": {"module.<name>": tensor}}``. Here ``<name>`` becomes the name of the Hugging Face
layout, which all formats share as the step before the network's own names.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from groundingml.models.checkpoints.errors import CheckpointError, listed
from groundingml.models.checkpoints.renaming import rename

_SWIN = "model.backbone.conv_encoder.model"
_SWIN_BLOCK = f"{_SWIN}.encoder.layers.{{i}}.blocks.{{j}}"
_FUSION = "model.encoder.layers.{i}.fusion_layer"
_TEXT = "model.encoder.layers.{i}.text_enhancer_layer"
_IMAGE = "model.encoder.layers.{i}.deformable_layer"
_DECODER = "model.decoder.layers.{i}"

TABLE = {
    # image backbone; the norm of stage i (counted from 0) is called norm<i>
    "backbone.0.patch_embed.proj.*": f"{_SWIN}.embeddings.patch_embeddings.projection.*",
    "backbone.0.patch_embed.norm.*": f"{_SWIN}.embeddings.norm.*",
    "backbone.0.layers.{i}.blocks.{j}.norm1.*": f"{_SWIN_BLOCK}.layernorm_before.*",
    "backbone.0.layers.{i}.blocks.{j}.attn.qkv.*": f"{_SWIN_BLOCK}.attention.self.{{qkv}}.*",
    "backbone.0.layers.{i}.blocks.{j}.attn.relative_position_bias_table": (
        f"{_SWIN_BLOCK}.attention.self.relative_position_bias_table"
    ),
    "backbone.0.layers.{i}.blocks.{j}.attn.proj.*": f"{_SWIN_BLOCK}.attention.output.dense.*",
    "backbone.0.layers.{i}.blocks.{j}.norm2.*": f"{_SWIN_BLOCK}.layernorm_after.*",
    "backbone.0.layers.{i}.blocks.{j}.mlp.fc1.*": f"{_SWIN_BLOCK}.intermediate.dense.*",
    "backbone.0.layers.{i}.blocks.{j}.mlp.fc2.*": f"{_SWIN_BLOCK}.output.dense.*",
    "backbone.0.layers.{i}.downsample.*": f"{_SWIN}.encoder.layers.{{i}}.downsample.*",
    "backbone.0.norm0.*": f"{_SWIN}.hidden_states_norms.stage1.*",
    "backbone.0.norm1.*": f"{_SWIN}.hidden_states_norms.stage2.*",
    "backbone.0.norm2.*": f"{_SWIN}.hidden_states_norms.stage3.*",
    "backbone.0.norm3.*": f"{_SWIN}.hidden_states_norms.stage4.*",
    "input_proj.{i}.{j}.*": "model.input_proj_vision.{i}.{j}.*",
    # text backbone
    "bert.*": "model.text_backbone.*",
    "feat_map.*": "model.text_projection.*",
    # feature enhancer: fusion, text layer, deformable layer
    "transformer.level_embed": "model.level_embed",
    "transformer.encoder.fusion_layers.{i}.gamma_v": f"{_FUSION}.vision_param",
    "transformer.encoder.fusion_layers.{i}.gamma_l": f"{_FUSION}.text_param",
    "transformer.encoder.fusion_layers.{i}.layer_norm_v.*": f"{_FUSION}.layer_norm_vision.*",
    "transformer.encoder.fusion_layers.{i}.layer_norm_l.*": f"{_FUSION}.layer_norm_text.*",
    "transformer.encoder.fusion_layers.{i}.attn.v_proj.*": f"{_FUSION}.attn.vision_proj.*",
    "transformer.encoder.fusion_layers.{i}.attn.l_proj.*": f"{_FUSION}.attn.text_proj.*",
    "transformer.encoder.fusion_layers.{i}.attn.values_v_proj.*": f"{_FUSION}.attn.values_vision_proj.*",
    "transformer.encoder.fusion_layers.{i}.attn.values_l_proj.*": f"{_FUSION}.attn.values_text_proj.*",
    "transformer.encoder.fusion_layers.{i}.attn.out_v_proj.*": f"{_FUSION}.attn.out_vision_proj.*",
    "transformer.encoder.fusion_layers.{i}.attn.out_l_proj.*": f"{_FUSION}.attn.out_text_proj.*",
    "transformer.encoder.text_layers.{i}.self_attn.in_proj_{leaf}": (f"{_TEXT}.self_attn.{{qkv}}.{{leaf}}"),
    "transformer.encoder.text_layers.{i}.self_attn.out_proj.*": f"{_TEXT}.self_attn.out_proj.*",
    "transformer.encoder.text_layers.{i}.norm1.*": f"{_TEXT}.layer_norm_before.*",
    "transformer.encoder.text_layers.{i}.linear1.*": f"{_TEXT}.fc1.*",
    "transformer.encoder.text_layers.{i}.linear2.*": f"{_TEXT}.fc2.*",
    "transformer.encoder.text_layers.{i}.norm2.*": f"{_TEXT}.layer_norm_after.*",
    "transformer.encoder.layers.{i}.self_attn.*": f"{_IMAGE}.self_attn.*",
    "transformer.encoder.layers.{i}.norm1.*": f"{_IMAGE}.self_attn_layer_norm.*",
    "transformer.encoder.layers.{i}.linear1.*": f"{_IMAGE}.fc1.*",
    "transformer.encoder.layers.{i}.linear2.*": f"{_IMAGE}.fc2.*",
    "transformer.encoder.layers.{i}.norm2.*": f"{_IMAGE}.final_layer_norm.*",
    # query selection
    "transformer.enc_output.*": "model.enc_output.*",
    "transformer.enc_output_norm.*": "model.enc_output_norm.*",
    "transformer.enc_out_bbox_embed.*": "model.encoder_output_bbox_embed.*",
    "transformer.tgt_embed.*": "model.query_position_embeddings.*",
    # decoder: norm1 belongs to the image attention, norm2 to the self-attention, which comes first
    "transformer.decoder.layers.{i}.self_attn.in_proj_{leaf}": f"{_DECODER}.self_attn.{{qkv}}.{{leaf}}",
    "transformer.decoder.layers.{i}.self_attn.out_proj.*": f"{_DECODER}.self_attn.out_proj.*",
    "transformer.decoder.layers.{i}.norm2.*": f"{_DECODER}.self_attn_layer_norm.*",
    "transformer.decoder.layers.{i}.ca_text.in_proj_{leaf}": f"{_DECODER}.encoder_attn_text.{{qkv}}.{{leaf}}",
    "transformer.decoder.layers.{i}.ca_text.out_proj.*": f"{_DECODER}.encoder_attn_text.out_proj.*",
    "transformer.decoder.layers.{i}.catext_norm.*": f"{_DECODER}.encoder_attn_text_layer_norm.*",
    "transformer.decoder.layers.{i}.cross_attn.*": f"{_DECODER}.encoder_attn.*",
    "transformer.decoder.layers.{i}.norm1.*": f"{_DECODER}.encoder_attn_layer_norm.*",
    "transformer.decoder.layers.{i}.linear1.*": f"{_DECODER}.fc1.*",
    "transformer.decoder.layers.{i}.linear2.*": f"{_DECODER}.fc2.*",
    "transformer.decoder.layers.{i}.norm3.*": f"{_DECODER}.final_layer_norm.*",
    "transformer.decoder.norm.*": "model.decoder.layer_norm.*",
    "transformer.decoder.ref_point_head.*": "model.decoder.reference_points_head.*",
    "bbox_embed.{i}.*": "bbox_embed.{i}.*",
}

DROPPED = (
    r"bert\.pooler\..*",  # the network reads the tokens, not the pooled sentence
    r".*\.(relative_position_index|position_ids)",  # buffers that are computed
    r"transformer\.decoder\.bbox_embed\..*",  # the same modules as bbox_embed, stored twice
    r"label_enc\..*",  # labels of denoising queries: training only
)


def is_original(names: set[str]) -> bool:
    """Whether these are names of the original repository (without the prefix ``module.``)."""
    fusion = any(name.startswith("transformer.encoder.fusion_layers.") for name in names)
    return "transformer.level_embed" in names and fusion


def to_huggingface_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of an original checkpoint under the names of the Hugging Face layout.

    Raises:
        CheckpointError: names that this format does not have.
    """
    renamed = rename(weights, TABLE, DROPPED)
    if renamed.unknown:
        raise CheckpointError(
            f"the file looks like an original Grounding DINO checkpoint, but {len(renamed.unknown)} of its "
            f"parameters are unknown: {listed(renamed.unknown)}. "
            "It may come from a changed model (a fork with added modules)."
        )
    return renamed.weights
