"""Our BERT against transformers' with equal weights."""

from __future__ import annotations

import pytest
import torch

from groundingml.models.bert import Bert

SMALL = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL)
    config._attn_implementation = "sdpa"
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.3)
    ours = Bert(SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("mask", ["blocks", "keys"])
@torch.no_grad()
def test_states_equal_transformers(pair, mask):
    theirs, ours = pair
    ids, types = torch.randint(50, (2, 9)), torch.randint(2, (2, 9))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6, 7]])
    if mask == "blocks":
        visible = (torch.rand(2, 1, 9, 9) > 0.5) | torch.eye(9, dtype=torch.bool)
    else:
        visible = (torch.arange(9) < torch.tensor([[9], [5]]))[:, None, None, :]
    expected = theirs(ids, visible.expand(2, 1, 9, 9), types, positions).last_hidden_state
    found = ours(ids, visible, types, positions).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours(ids, visible).last_hidden_state, found)  # types and positions count


@torch.no_grad()
def test_default_types_and_positions(pair):
    theirs, ours = pair
    ids = torch.randint(50, (2, 7))
    everything = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    torch.testing.assert_close(ours(ids, everything)[0], theirs(ids)[0], atol=1e-5, rtol=1e-5)


def test_begins_as_transformers_does():
    bert = Bert({**SMALL, "pad_token_id": 3})
    for name, parameter in bert.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "LayerNorm" not in name:
            assert 0.01 < parameter.std() < 0.03, name
    assert not bert.embeddings.word_embeddings.weight[3].any()


def test_drops_out_in_training_only():
    bert = Bert(SMALL)
    ids, mask = torch.randint(1, 50, (1, 7)), torch.ones(1, 1, 7, 7, dtype=torch.bool)
    assert not torch.equal(bert(ids, mask)[0], bert(ids, mask)[0])
    bert.eval()
    assert torch.equal(bert(ids, mask)[0], bert(ids, mask)[0])
    bert(ids, mask)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in bert.parameters())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="hidden_act='relu' is not supported"):
        Bert({**SMALL, "hidden_act": "relu"})
