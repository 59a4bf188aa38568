"""LoRA adapters: what learns, and that merging them changes nothing but where the numbers are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from groundingml.models.grounding_dino import GroundingDino
from groundingml.training.adapters import AdapterConfig, add_adapters, merge_adapters


def outputs(model: GroundingDino) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(1, 3, 64, 64, generator=generator)
    ids = torch.tensor([[101, 2417, 2675, 1012, 102]])
    with torch.no_grad():
        answer = model.eval()(pixels, None, ids)
    return torch.cat([answer.logits[..., :5], answer.boxes_cxcywh], dim=-1)


def test_new_adapters_change_nothing_and_only_they_and_the_heads_learn(model: GroundingDino) -> None:
    before = outputs(model)
    add_adapters(model, AdapterConfig(rank=2))
    torch.testing.assert_close(outputs(model), before)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any(".lora_A." in name and name.startswith("enhancer.") for name in learning)
    assert any(".lora_B." in name and name.startswith("decoder.") for name in learning)
    assert all(".lora_" in name or name.startswith(("heads.", "proposals.")) for name in learning)


def test_every_adapter_counts_and_merging_keeps_what_they_do(model: GroundingDino) -> None:
    before = outputs(model)
    names = model.state_dict().keys()
    add_adapters(model, AdapterConfig(rank=2))
    adapters = {n: p for n, p in model.named_parameters() if ".lora_B." in n}
    for name, parameter in adapters.items():
        # Each alone, so that none sits on a layer whose matrix is read behind its back.
        with torch.no_grad():
            parameter.copy_(torch.randn_like(parameter))
            changed = outputs(model)
            parameter.zero_()
        # A constant added to all scores of a softmax is no change: keys of one text token may do nothing.
        assert "key" in name or (changed - before).abs().max() > 1e-6, name
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    adapted = outputs(model)
    assert (adapted - before).abs().max() > 1e-3
    merge_adapters(model)
    assert model.state_dict().keys() == names
    torch.testing.assert_close(outputs(model), adapted, atol=1e-4, rtol=1e-4)


def test_parts_without_attention_are_said(model: GroundingDino) -> None:
    with pytest.raises(ValueError, match="no attention in heads"):
        add_adapters(model, replace(AdapterConfig(), parts=("heads",)))
    with pytest.raises(ValueError, match="at least 1"):
        AdapterConfig(rank=0)
