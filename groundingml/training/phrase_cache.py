"""BERT's output kept for each phrase, for training with a frozen BERT.

Tokens attend only inside their phrase and positions restart in each, so a phrase's output does not depend on
the rest of the prompt: a run needs BERT once for each phrase, however its prompts are shuffled.
"""

import itertools

import torch
from torch import Tensor

from groundingml.models.grounding_dino.outputs import TextFeatures
from groundingml.models.grounding_dino.text import TextEncoder, phrase_blocks


class PhraseCache:
    """Encodes prompts as ``model.encode_text`` does (to rounding), running BERT only on phrases not met
    before."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._hidden: dict[tuple[int, ...], Tensor] = {}

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        """input_ids, attention_mask: (B, T), each row ending with "." and [SEP] before its padding."""
        block_mask, position_ids = phrase_blocks(input_ids, self.encoder.delimiters)
        rows = [
            self._blocks(row, ids) for row, ids in zip(input_ids.tolist(), position_ids.tolist(), strict=True)
        ]
        new = list({block for row in rows for block in row if block not in self._hidden})
        if new:
            self._hidden.update(zip(new, self._run_bert(new, input_ids.device), strict=True))
        hidden = torch.stack([torch.cat([self._hidden[block] for block in row]) for row in rows])
        return self.encoder.project(hidden, attention_mask, block_mask, position_ids)

    @staticmethod
    def _blocks(row: list[int], position_ids: list[int]) -> list[tuple[int, ...]]:
        """Cut a row of tokens where positions start again at 0."""
        starts = [i for i, position in enumerate(position_ids) if position == 0] + [len(row)]
        return [tuple(row[low:high]) for low, high in itertools.pairwise(starts)]

    @torch.no_grad()
    def _run_bert(self, blocks: list[tuple[int, ...]], device: torch.device) -> list[Tensor]:
        # A phrase that also sees [CLS] has it in front, at position 0; [CLS] itself sees nothing else.
        fronts = [1 if self.encoder.sees_cls and len(block) > 1 else 0 for block in blocks]
        length = max(len(block) + front for block, front in zip(blocks, fronts, strict=True))
        input_ids = torch.zeros(len(blocks), length, dtype=torch.int64)
        mask = torch.zeros(len(blocks), length, length, dtype=torch.bool)
        for row, (block, front) in enumerate(zip(blocks, fronts, strict=True)):
            end = front + len(block)
            input_ids[row, :front] = self.encoder.delimiters[0]
            input_ids[row, front:end] = torch.tensor(block)
            mask[row, front:end, :end] = True
        mask |= torch.eye(length, dtype=torch.bool)  # padding sees itself: no row of the softmax may be empty
        training = self.encoder.bert.training
        self.encoder.bert.eval()  # what is kept must not have dropout in it
        hidden: Tensor = self.encoder.bert(
            input_ids=input_ids.to(device),
            attention_mask=mask.unsqueeze(1).to(device),
            token_type_ids=torch.zeros_like(input_ids).to(device),
            position_ids=torch.arange(length, device=device).expand(len(blocks), length),
        ).last_hidden_state
        self.encoder.bert.train(training)
        return [
            hidden[row, front : front + len(block)].clone()
            for row, (block, front) in enumerate(zip(blocks, fronts, strict=True))
        ]
