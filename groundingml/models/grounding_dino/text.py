"""The text side: BERT over a prompt whose phrases do not see each other.

"cat . remote control ." is one sequence for speed, but each phrase is encoded as if it were alone: tokens
attend only within their phrase (a block), and position ids start again at 0 in each. A delimiter ends the
block it belongs to. Tokens after the last delimiter but [SEP] form a block with [SEP] only if something
(padding) follows it, a quirk of the original. End every prompt with a ".", and its result is the same alone
and in a padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from groundingml.models.bert import Bert
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.outputs import TextFeatures
from groundingml.models.grounding_dino.positions import sine_embedding
from groundingml.models.linear import Linear


class TextEncoder(nn.Module):
    """BERT (without its pooler) and the projection to the network's width."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.max_text_len = config.max_text_len
        self.delimiters = config.delimiter_token_ids
        self.sees_cls = config.text_sees_cls
        self.bert = Bert(config.text_config)
        self.projection = Linear(config.text_config["hidden_size"], config.d_model)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> TextFeatures:
        """input_ids, attention_mask (1 at real tokens), token_type_ids: (B, T).

        Raises:
            ValueError: more than `max_text_len` tokens (split the labels over several prompts).
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be (batch, tokens), got shape {tuple(input_ids.shape)}")
        if input_ids.shape[1] > self.max_text_len:
            raise ValueError(
                f"the prompt has {input_ids.shape[1]} tokens, the model takes at most {self.max_text_len}; "
                "split the labels over several prompts"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        block_mask, position_ids = phrase_blocks(input_ids, self.delimiters)
        visible, bert_positions = block_mask, position_ids
        if self.sees_cls:
            in_phrase = block_mask.sum(dim=-1, keepdim=True) > 1
            visible = torch.cat([block_mask[..., :1] | in_phrase, block_mask[..., 1:]], dim=-1)
            bert_positions = torch.where(in_phrase.squeeze(-1), position_ids + 1, 0)
        hidden = self.bert(
            input_ids=input_ids,
            attention_mask=visible.unsqueeze(1),
            token_type_ids=token_type_ids,
            position_ids=bert_positions,
        ).last_hidden_state
        return self.project(hidden, attention_mask, block_mask, position_ids)

    def project(
        self, hidden: Tensor, attention_mask: Tensor, block_mask: Tensor, position_ids: Tensor
    ) -> TextFeatures:
        """The features made of BERT's output (B, T, H), which may have been cached for each phrase."""
        tokens = self.projection(hidden)
        return TextFeatures(
            tokens=tokens,
            mask=attention_mask.bool(),
            block_mask=block_mask,
            positions=sine_embedding(position_ids, tokens.shape[-1]).to(tokens.dtype),
            hidden=hidden,
        )


def phrase_blocks(input_ids: Tensor, delimiters: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which tokens see each other, and each token's place in its phrase.

    A token belongs to the first delimiter at or after it. Where that delimiter is the first or the very last
    token of the row, or is missing, the token sees only itself and its position is 0.

    Returns:
        (B, T, T) bool, True where two tokens share a block (always on the diagonal), and position ids (B, T).
    """
    length = input_ids.shape[1]
    index = torch.arange(length, device=input_ids.device)
    marks = torch.tensor(delimiters, device=input_ids.device)
    delimiter = (input_ids.unsqueeze(-1) == marks).any(dim=-1).unsqueeze(1)  # (B, 1, T)
    # Over all pairs of tokens, which needs no running minimum: ONNX has none.
    following = torch.where(delimiter & (index >= index.unsqueeze(1)), index, length).amin(dim=-1)
    previous = torch.where(delimiter & (index < index.unsqueeze(1)), index, -1).amax(dim=-1)
    in_block = (following != 0) & (following < length - 1)
    same_block = (following.unsqueeze(2) == following.unsqueeze(1)) & in_block.unsqueeze(1)
    diagonal = index.unsqueeze(0) == index.unsqueeze(1)
    position_ids = torch.where(in_block, index - previous - 1, 0)
    return same_block | diagonal, position_ids
