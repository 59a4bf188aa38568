"""BERT's encoder (arXiv:1810.04805), with the parameter names that every published checkpoint uses.

transformers has one too, but importing it takes longer than importing PyTorch and reading the weights
together; this one is tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.linear import Linear


class BertOutput(NamedTuple):
    """What `Bert` returns."""

    last_hidden_state: Tensor
    """(B, T, H)."""


class Bert(nn.Module):
    """Embeddings and the stack of layers; no pooler.

    Args:
        text_config: keyword arguments of transformers' BertConfig, with its defaults.

    Raises:
        ValueError: another activation than GELU, or position embeddings that are not absolute.
    """

    def __init__(self, text_config: Mapping[str, Any]) -> None:
        super().__init__()
        for name, supported in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if text_config.get(name, supported) != supported:
                raise ValueError(
                    f"text_config: {name}={text_config[name]!r} is not supported, only {supported!r}"
                )
        self.embeddings = BertEmbeddings(text_config)
        self.encoder = BertEncoder(text_config)
        std = text_config.get("initializer_range", 0.02)
        for module in self.modules():
            if isinstance(module, Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, Linear):
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.embeddings.word_embeddings.weight[text_config.get("pad_token_id", 0)])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> BertOutput:
        """Encode tokens.

        Args:
            input_ids: (B, T).
            attention_mask: bool, broadcastable to (B, 1, T, T); True where a row may attend to a column,
                which has to be somewhere in each row.
            token_type_ids: (B, T), by default 0.
            position_ids: (B, T), by default 0, 1, 2, ...
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids)
        return BertOutput(self.encoder(x, attention_mask))


class BertEmbeddings(nn.Module):
    """Word, position and token type, summed and normed."""

    def __init__(self, text_config: Mapping[str, Any]) -> None:
        super().__init__()
        width = text_config.get("hidden_size", 768)
        self.word_embeddings = nn.Embedding(
            text_config.get("vocab_size", 30522), width, padding_idx=text_config.get("pad_token_id", 0)
        )
        self.position_embeddings = nn.Embedding(text_config.get("max_position_embeddings", 512), width)
        self.token_type_embeddings = nn.Embedding(text_config.get("type_vocab_size", 2), width)
        self.LayerNorm = nn.LayerNorm(width, eps=text_config.get("layer_norm_eps", 1e-12))
        self.dropout = text_config.get("hidden_dropout_prob", 0.1)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None
    ) -> Tensor:
        """(B, T) each -> (B, T, H)."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = self.LayerNorm(x + self.position_embeddings(position_ids))
        return F.dropout(x, self.dropout, self.training)


class BertLayer(nn.Module):
    """Self-attention and a feed-forward block, post-norm."""

    def __init__(self, text_config: Mapping[str, Any]) -> None:
        super().__init__()
        width, hidden = text_config.get("hidden_size", 768), text_config.get("intermediate_size", 3072)
        self.attention = BertAttention(text_config)
        self.intermediate = BertIntermediate(width, hidden)
        self.output = BertResidual(hidden, text_config)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """x (B, T, H), attention_mask broadcastable to (B, 1, T, T) -> (B, T, H)."""
        x = self.attention(x, attention_mask)
        result: Tensor = self.output(self.intermediate(x), x)
        return result


class BertAttention(nn.Module):
    """Self-attention with its residual."""

    def __init__(self, text_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.self = BertSelfAttention(text_config)
        self.output = BertResidual(text_config.get("hidden_size", 768), text_config)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        result: Tensor = self.output(self.self(x, attention_mask), x)
        return result


class BertSelfAttention(nn.Module):
    """Scaled dot-product attention, without the output projection."""

    def __init__(self, text_config: Mapping[str, Any]) -> None:
        super().__init__()
        width = text_config.get("hidden_size", 768)
        self.heads = text_config.get("num_attention_heads", 12)
        self.dropout = text_config.get("attention_probs_dropout_prob", 0.1)
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        query, key, value = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout)
        return seen.transpose(1, 2).flatten(2)


class BertIntermediate(nn.Module):
    """The first half of the feed-forward block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x, "gelu")


class BertResidual(nn.Module):
    """A projection, dropout, the residual and a LayerNorm: what both blocks of a layer end with."""

    def __init__(self, channels: int, text_config: Mapping[str, Any]) -> None:
        super().__init__()
        width = text_config.get("hidden_size", 768)
        self.dense = Linear(channels, width)
        self.LayerNorm = nn.LayerNorm(width, eps=text_config.get("layer_norm_eps", 1e-12))
        self.dropout = text_config.get("hidden_dropout_prob", 0.1)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        result: Tensor = self.LayerNorm(x + F.dropout(self.dense(hidden), self.dropout, self.training))
        return result


class BertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, text_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            BertLayer(text_config) for _ in range(text_config.get("num_hidden_layers", 12))
        )

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, attention_mask)
        return x
