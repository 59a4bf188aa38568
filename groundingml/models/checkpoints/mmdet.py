"""Checkpoints of MMDetection: Grounding DINO, MM-Grounding-DINO and LLMDet.

The file holds ``{"state_dict": {<name>: tensor}}``. Names become those of the Hugging Face layout. Two things
differ besides names:

- PatchMerging concatenates the 2x2 neighbours with ``nn.Unfold``, so that the input channels of its norm and
  reduction are ordered (channel, row, column); everyone else has (column, row, channel);
- the class bias has shape [1] instead of [].
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from groundingml.models.checkpoints.errors import CheckpointError, listed
from groundingml.models.checkpoints.renaming import rename
from groundingml.models.checkpoints.sizes import count_numbered

_SWIN = "model.backbone.conv_encoder.model"
_SWIN_BLOCK = f"{_SWIN}.encoder.layers.{{i}}.blocks.{{j}}"
_FUSION = "model.encoder.layers.{i}.fusion_layer"
_TEXT = "model.encoder.layers.{i}.text_enhancer_layer"
_IMAGE = "model.encoder.layers.{i}.deformable_layer"
_DECODER = "model.decoder.layers.{i}"

TABLE = {
    # image backbone and its projections; the norm of stage i (counted from 0) is called norm<i>
    "backbone.patch_embed.projection.*": f"{_SWIN}.embeddings.patch_embeddings.projection.*",
    "backbone.patch_embed.norm.*": f"{_SWIN}.embeddings.norm.*",
    "backbone.stages.{i}.blocks.{j}.norm1.*": f"{_SWIN_BLOCK}.layernorm_before.*",
    "backbone.stages.{i}.blocks.{j}.attn.w_msa.qkv.*": f"{_SWIN_BLOCK}.attention.self.{{qkv}}.*",
    "backbone.stages.{i}.blocks.{j}.attn.w_msa.relative_position_bias_table": (
        f"{_SWIN_BLOCK}.attention.self.relative_position_bias_table"
    ),
    "backbone.stages.{i}.blocks.{j}.attn.w_msa.proj.*": f"{_SWIN_BLOCK}.attention.output.dense.*",
    "backbone.stages.{i}.blocks.{j}.norm2.*": f"{_SWIN_BLOCK}.layernorm_after.*",
    "backbone.stages.{i}.blocks.{j}.ffn.layers.0.0.*": f"{_SWIN_BLOCK}.intermediate.dense.*",
    "backbone.stages.{i}.blocks.{j}.ffn.layers.1.*": f"{_SWIN_BLOCK}.output.dense.*",
    "backbone.stages.{i}.downsample.*": f"{_SWIN}.encoder.layers.{{i}}.downsample.*",
    "backbone.norm0.*": f"{_SWIN}.hidden_states_norms.stage1.*",
    "backbone.norm1.*": f"{_SWIN}.hidden_states_norms.stage2.*",
    "backbone.norm2.*": f"{_SWIN}.hidden_states_norms.stage3.*",
    "backbone.norm3.*": f"{_SWIN}.hidden_states_norms.stage4.*",
    "neck.convs.{i}.conv.*": "model.input_proj_vision.{i}.0.*",
    "neck.convs.{i}.gn.*": "model.input_proj_vision.{i}.1.*",
    # text backbone
    "language_model.language_backbone.body.model.*": "model.text_backbone.*",
    "text_feat_map.*": "model.text_projection.*",
    # feature enhancer: fusion, text layer, deformable layer
    "level_embed": "model.level_embed",
    "encoder.fusion_layers.{i}.gamma_v": f"{_FUSION}.vision_param",
    "encoder.fusion_layers.{i}.gamma_l": f"{_FUSION}.text_param",
    "encoder.fusion_layers.{i}.layer_norm_v.*": f"{_FUSION}.layer_norm_vision.*",
    "encoder.fusion_layers.{i}.layer_norm_l.*": f"{_FUSION}.layer_norm_text.*",
    "encoder.fusion_layers.{i}.attn.v_proj.*": f"{_FUSION}.attn.vision_proj.*",
    "encoder.fusion_layers.{i}.attn.l_proj.*": f"{_FUSION}.attn.text_proj.*",
    "encoder.fusion_layers.{i}.attn.values_v_proj.*": f"{_FUSION}.attn.values_vision_proj.*",
    "encoder.fusion_layers.{i}.attn.values_l_proj.*": f"{_FUSION}.attn.values_text_proj.*",
    "encoder.fusion_layers.{i}.attn.out_v_proj.*": f"{_FUSION}.attn.out_vision_proj.*",
    "encoder.fusion_layers.{i}.attn.out_l_proj.*": f"{_FUSION}.attn.out_text_proj.*",
    "encoder.text_layers.{i}.self_attn.attn.in_proj_{leaf}": f"{_TEXT}.self_attn.{{qkv}}.{{leaf}}",
    "encoder.text_layers.{i}.self_attn.attn.out_proj.*": f"{_TEXT}.self_attn.out_proj.*",
    "encoder.text_layers.{i}.norms.0.*": f"{_TEXT}.layer_norm_before.*",
    "encoder.text_layers.{i}.ffn.layers.0.0.*": f"{_TEXT}.fc1.*",
    "encoder.text_layers.{i}.ffn.layers.1.*": f"{_TEXT}.fc2.*",
    "encoder.text_layers.{i}.norms.1.*": f"{_TEXT}.layer_norm_after.*",
    "encoder.layers.{i}.self_attn.*": f"{_IMAGE}.self_attn.*",
    "encoder.layers.{i}.norms.0.*": f"{_IMAGE}.self_attn_layer_norm.*",
    "encoder.layers.{i}.ffn.layers.0.0.*": f"{_IMAGE}.fc1.*",
    "encoder.layers.{i}.ffn.layers.1.*": f"{_IMAGE}.fc2.*",
    "encoder.layers.{i}.norms.1.*": f"{_IMAGE}.final_layer_norm.*",
    # query selection
    "memory_trans_fc.*": "model.enc_output.*",
    "memory_trans_norm.*": "model.enc_output_norm.*",
    "query_embedding.*": "model.query_position_embeddings.*",
    # decoder
    "decoder.layers.{i}.self_attn.attn.in_proj_{leaf}": f"{_DECODER}.self_attn.{{qkv}}.{{leaf}}",
    "decoder.layers.{i}.self_attn.attn.out_proj.*": f"{_DECODER}.self_attn.out_proj.*",
    "decoder.layers.{i}.norms.0.*": f"{_DECODER}.self_attn_layer_norm.*",
    "decoder.layers.{i}.cross_attn_text.attn.in_proj_{leaf}": (
        f"{_DECODER}.encoder_attn_text.{{qkv}}.{{leaf}}"
    ),
    "decoder.layers.{i}.cross_attn_text.attn.out_proj.*": f"{_DECODER}.encoder_attn_text.out_proj.*",
    "decoder.layers.{i}.norms.1.*": f"{_DECODER}.encoder_attn_text_layer_norm.*",
    "decoder.layers.{i}.cross_attn.*": f"{_DECODER}.encoder_attn.*",
    "decoder.layers.{i}.norms.2.*": f"{_DECODER}.encoder_attn_layer_norm.*",
    "decoder.layers.{i}.ffn.layers.0.0.*": f"{_DECODER}.fc1.*",
    "decoder.layers.{i}.ffn.layers.1.*": f"{_DECODER}.fc2.*",
    "decoder.layers.{i}.norms.3.*": f"{_DECODER}.final_layer_norm.*",
    "decoder.norm.*": "model.decoder.layer_norm.*",
    "decoder.ref_point_head.*": "model.decoder.reference_points_head.*",
    # heads: a box branch is Linear, ReLU, Linear, ReLU, Linear
    "bbox_head.cls_branches.{i}.bias": "class_embed.{i}.bias",
    "bbox_head.reg_branches.{i}.0.*": "bbox_embed.{i}.layers.0.*",
    "bbox_head.reg_branches.{i}.2.*": "bbox_embed.{i}.layers.1.*",
    "bbox_head.reg_branches.{i}.4.*": "bbox_embed.{i}.layers.2.*",
}

DROPPED = (
    r"dn_query_generator\..*",  # denoising queries: training only
    r".*\.pooler\..*",  # the network reads the tokens, not the pooled sentence
    r".*\.(relative_position_index|position_ids)",  # buffers that are computed
    r"data_preprocessor\..*",  # mean and standard deviation of the pixels
)


def is_mmdet(names: set[str]) -> bool:
    """Whether these are names of MMDetection's Grounding DINO family."""
    return "level_embed" in names and any(name.startswith("encoder.fusion_layers.") for name in names)


def to_huggingface_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of an MMDetection checkpoint, with names and channel order of the Hugging Face layout.

    Of an LLMDet checkpoint (one with ``lmm.*``) all that belongs to its language model is left out: at
    inference LLMDet is MM-Grounding-DINO.

    Raises:
        CheckpointError: names that this format does not have.
    """
    renamed = rename(weights, {**_numbered_by_size(weights), **TABLE}, DROPPED)
    is_llmdet = any(name.startswith("lmm.") for name in weights)
    if renamed.unknown and not is_llmdet:
        raise CheckpointError(
            f"the file looks like an MMDetection Grounding DINO checkpoint, but {len(renamed.unknown)} of "
            f"its parameters are unknown: {listed(renamed.unknown)}. "
            "It may come from a changed model (a fork with added modules)."
        )
    return {name: _corrected(name, tensor) for name, tensor in renamed.weights.items()}


def _numbered_by_size(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Rules whose numbers depend on the model: extra levels come last, the last branch is the encoder's."""
    levels = count_numbered(weights, r"neck\.convs\.(\d+)\..*")
    extra = count_numbered(weights, r"neck\.extra_convs\.(\d+)\..*")
    last = count_numbered(weights, r"bbox_head\.reg_branches\.(\d+)\..*") - 1
    table = {
        f"bbox_head.cls_branches.{last}.bias": "model.encoder_output_class_embed.bias",
        f"bbox_head.reg_branches.{last}.0.*": "model.encoder_output_bbox_embed.layers.0.*",
        f"bbox_head.reg_branches.{last}.2.*": "model.encoder_output_bbox_embed.layers.1.*",
        f"bbox_head.reg_branches.{last}.4.*": "model.encoder_output_bbox_embed.layers.2.*",
    }
    for k in range(extra):
        table[f"neck.extra_convs.{k}.conv.*"] = f"model.input_proj_vision.{levels + k}.0.*"
        table[f"neck.extra_convs.{k}.gn.*"] = f"model.input_proj_vision.{levels + k}.1.*"
    return table


def _corrected(name: str, tensor: Tensor) -> Tensor:
    if ".downsample." in name:
        return from_unfold_order(tensor)
    if "class_embed" in name and tensor.shape == (1,):
        return tensor.reshape(())
    return tensor


def from_unfold_order(tensor: Tensor) -> Tensor:
    """Reorder the last axis, 4C long, from (channel, row, column) to (column, row, channel).

    ``nn.Unfold`` gives the first; Swin's slices, ``x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2],
    x[1::2, 1::2]``, give the second.
    """
    neighbours = tensor.reshape(*tensor.shape[:-1], -1, 2, 2)
    return neighbours.transpose(-1, -3).reshape(tensor.shape)
