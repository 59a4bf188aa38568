from __future__ import annotations

import pytest
import torch

from groundingml.models.checkpoints.renaming import rename


@pytest.mark.parametrize(
    ("source", "target", "name", "renamed"),
    [
        ("a.{i}.b.*", "x.{i}.*", "a.12.b.weight", "x.12.weight"),
        ("a.{i}.b.{j}", "x.{j}.{i}", "a.1.b.22", "x.22.1"),
        ("a.in_{leaf}", "x.{leaf}", "a.in_bias", "x.bias"),
        ("a.*", "x.*", "a.b.c.weight", "x.b.c.weight"),
        ("a.b", "x", "a.b", "x"),
    ],
)
def test_a_rule_renames(source, target, name, renamed):
    tensor = torch.zeros(2)
    result = rename({name: tensor}, {source: target})
    assert list(result.weights) == [renamed]
    assert result.weights[renamed] is tensor
    assert result.unknown == []


@pytest.mark.parametrize("name", ["a.x.b", "aa.1.b", "a.1.b.c", "a.1.bias", "a.1"])
def test_a_rule_matches_whole_names_only(name):
    result = rename({name: torch.zeros(2)}, {"a.{i}.b": "x.{i}"})
    assert result.weights == {}
    assert result.unknown == [name]


def test_a_fused_projection_is_split_in_order_into_memory_of_its_own():
    fused = torch.arange(12.0).reshape(6, 2)
    result = rename({"attn.in_proj_weight": fused}, {"attn.in_proj_{leaf}": "attn.{qkv}.{leaf}"})
    assert list(result.weights) == ["attn.query.weight", "attn.key.weight", "attn.value.weight"]
    assert torch.equal(torch.cat(list(result.weights.values())), fused)
    assert len({t.untyped_storage().data_ptr() for t in (fused, *result.weights.values())}) == 4


def test_dropped_names_and_the_first_rule_win():
    weights = {"a.b": torch.zeros(1), "a.c": torch.zeros(1), "a.pooler.weight": torch.zeros(1)}
    result = rename(weights, {"a.b": "first", "a.*": "second.*"}, dropped=[r"a\.pooler\..*"])
    assert list(result.weights) == ["first", "second.c"]
    assert result.unknown == []
