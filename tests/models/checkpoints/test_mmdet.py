"""MMDetection's layout: PatchMerging against nn.Unfold, branches, and equal outputs after loading."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models import load_model
from groundingml.models.checkpoints.mmdet import to_huggingface_names
from groundingml.models.swin import PatchMerging

# From the names of the original repository to MMDetection's. Written for this test, in the other direction
# than the tables of the package; the original's names are checked in test_original.py.
_FROM_ORIGINAL = (
    (r"^backbone\.0\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.attn\.", r"backbone.stages.\1.blocks.\2.attn.w_msa."),
    (r"^backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1", r"backbone.stages.\1.blocks.\2.ffn.layers.0.0"),
    (r"^backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2", r"backbone.stages.\1.blocks.\2.ffn.layers.1"),
    (r"^backbone\.0\.layers\.", "backbone.stages."),
    (r"^backbone\.0\.", "backbone."),
    (r"^bert\.", "language_model.language_backbone.body.model."),
    (r"^feat_map", "text_feat_map"),
    (r"^transformer\.tgt_embed", "query_embedding"),
    (r"^transformer\.enc_output_norm", "memory_trans_norm"),
    (r"^transformer\.enc_output", "memory_trans_fc"),
    (r"^transformer\.", ""),
    (r"^(encoder\.text_layers|decoder\.layers)\.(\d+)\.self_attn\.", r"\1.\2.self_attn.attn."),
    (r"^decoder\.layers\.(\d+)\.ca_text\.", r"decoder.layers.\1.cross_attn_text.attn."),
    (r"^decoder\.layers\.(\d+)\.norm2", r"decoder.layers.\1.norms.0"),
    (r"^decoder\.layers\.(\d+)\.catext_norm", r"decoder.layers.\1.norms.1"),
    (r"^decoder\.layers\.(\d+)\.norm1", r"decoder.layers.\1.norms.2"),
    (r"^decoder\.layers\.(\d+)\.norm3", r"decoder.layers.\1.norms.3"),
    (r"^(encoder\.(?:text_)?layers)\.(\d+)\.norm1", r"\1.\2.norms.0"),
    (r"^(encoder\.(?:text_)?layers)\.(\d+)\.norm2", r"\1.\2.norms.1"),
    (r"\.linear1\.", ".ffn.layers.0.0."),
    (r"\.linear2\.", ".ffn.layers.1."),
)


def unfold_order(channels: int) -> Tensor:
    """Which of Swin's channels each input channel of MMDetection's PatchMerging is, by unfolding numbers."""
    swin = torch.empty(1, channels, 2, 2)
    for part, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        swin[0, :, row, column] = torch.arange(channels) + part * channels
    return F.unfold(swin, kernel_size=2, stride=2).flatten().long()


@pytest.fixture
def mmdet_layout(original_layout):
    def convert(model: nn.Module) -> dict[str, Tensor]:
        config = model.config
        original = original_layout(model)
        backbone_levels = len(config.backbone.out_stages)
        weights: dict[str, Tensor] = {}
        for name, tensor in original.items():
            if name.startswith("transformer.decoder.bbox_embed.") or "pooler" in name:
                continue
            if ".downsample." in name:
                tensor = tensor[..., unfold_order(tensor.shape[-1] // 4)]
            for pattern, replacement in _FROM_ORIGINAL:
                name = re.sub(pattern, replacement, name)
            if match := re.fullmatch(r"input_proj\.(\d+)\.([01])\.(\w+)", name):
                level, part = int(match[1]), "conv" if match[2] == "0" else "gn"
                extra = level - backbone_levels
                place = f"convs.{level}" if extra < 0 else f"extra_convs.{extra}"
                name = f"neck.{place}.{part}.{match[3]}"
            elif match := re.fullmatch(
                r"(?:bbox_embed\.(\d+)|enc_out_bbox_embed)\.layers\.(\d)\.(\w+)", name
            ):
                branch = match[1] or config.decoder_layers
                name = f"bbox_head.reg_branches.{branch}.{2 * int(match[2])}.{match[3]}"
            elif match := re.fullmatch(
                r"(?:class_embed\.(\d+)|model\.encoder_output_class_embed)\.bias", name
            ):
                name = f"bbox_head.cls_branches.{match[1] or config.decoder_layers}.bias"
                tensor = tensor.reshape(1)
            weights[name] = tensor
        weights["dn_query_generator.label_embedding.weight"] = torch.zeros(5, config.d_model)
        weights["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(16, 16).long()
        return weights

    return convert


def test_patch_merging_equals_nn_unfold():
    torch.manual_seed(0)
    channels, x = 6, torch.randn(2, 6, 8, 10)
    norm, reduction = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 2 * channels, bias=False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = reduction(norm(nn.Unfold(kernel_size=2, stride=2)(x).transpose(1, 2)))

    stage = "backbone.stages.0.downsample"
    file = {f"{stage}.norm.{k}": v for k, v in norm.state_dict().items()}
    file[f"{stage}.reduction.weight"] = reduction.weight
    ours = PatchMerging(channels)
    prefix = "model.backbone.conv_encoder.model.encoder.layers.0.downsample."
    ours.load_state_dict({k.removeprefix(prefix): v for k, v in to_huggingface_names(file).items()})
    torch.testing.assert_close(ours(x.permute(0, 2, 3, 1)).flatten(1, 2), expected)


@pytest.mark.parametrize(
    ("family", "levels"),
    [("grounding-dino", 4), ("mm-grounding-dino", 4), ("mm-grounding-dino", 5), ("llmdet", 4)],
)
def test_outputs_are_equal(tmp_path, small_model, published_sizes, mmdet_layout, batch_of, family, levels):
    model = small_model(family.replace("llmdet", "mm-grounding-dino"), levels, **published_sizes)
    weights = mmdet_layout(model)
    if family == "llmdet":  # its authors' files hold their language model too
        weights["lmm.model.layers.0.self_attn.q_proj.weight"] = torch.zeros(4, 4)
        weights["lmm.lm_head.weight"] = torch.zeros(8, 4)
    torch.save({"meta": {"epoch": 12}, "state_dict": weights}, tmp_path / "epoch_12.pth")
    loaded = load_model(tmp_path / "epoch_12.pth")
    assert loaded.config == model.config
    batch = batch_of([(96, 117), (64, 70)], [[1, 2], [3]])
    inputs = (batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask)
    with torch.no_grad():
        expected, found = model(*inputs), loaded(*inputs)
    assert torch.equal(found.topk_indices, expected.topk_indices)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.boxes_cxcywh, expected.boxes_cxcywh)


def test_the_last_branch_is_the_encoders(small_model, published_sizes, mmdet_layout):
    model = small_model("mm-grounding-dino", **published_sizes)
    weights = mmdet_layout(model)
    last = model.config.decoder_layers
    weights[f"bbox_head.cls_branches.{last}.bias"] = torch.tensor([-7.0])
    converted = to_huggingface_names(weights)
    assert converted["model.encoder_output_class_embed.bias"] == torch.tensor(-7.0)
    assert f"class_embed.{last}.bias" not in converted
    assert f"bbox_embed.{last}.layers.0.weight" not in converted
