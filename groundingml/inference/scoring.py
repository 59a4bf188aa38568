"""Token logits -> scores of labels, and the candidates worth keeping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from groundingml.inference.prompts import TextChunk

Aggregation: TypeAlias = Literal["max", "mean"]


@dataclass(frozen=True)
class Candidates:
    """N pairs of a query and a label that pass the label's threshold. All tensors are (N,), boxes (N, 4)."""

    boxes_cxcywh: Tensor
    scores: Tensor
    label_ids: Tensor
    prompt_numbers: Tensor

    @staticmethod
    def concatenate(parts: list[Candidates]) -> Candidates:
        return Candidates(
            torch.cat([part.boxes_cxcywh for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.label_ids for part in parts]),
            torch.cat([part.prompt_numbers for part in parts]),
        )


def prompt_scores(logits: Tensor, chunk: TextChunk, aggregation: Aggregation) -> Tensor:
    """(Q, T) token logits -> (Q, P) scores in 0..1: for each prompt the max or mean over the sigmoids of its
    own tokens."""
    positions = [position for prompt in chunk.prompts for position in prompt.positions]
    owners = [place for place, prompt in enumerate(chunk.prompts) for _ in prompt.positions]
    tokens = logits[:, torch.tensor(positions, device=logits.device)].float().sigmoid()
    index = torch.tensor(owners, device=logits.device).expand_as(tokens)
    scores = tokens.new_zeros(logits.shape[0], len(chunk.prompts))
    reduce = "amax" if aggregation == "max" else "mean"
    return scores.scatter_reduce(1, index, tokens, reduce, include_self=False)


def score_pairs(logits: Tensor, chunk: TextChunk, aggregation: Aggregation) -> tuple[Tensor, Tensor, Tensor]:
    """(Q, T) token logits -> (Q, N) scores of the N pairs of a prompt and a label that it scores for.

    Of a label's several prompts the best counts in each row, the others get -1. Also returned: (N,) the label
    and (N,) the number of the prompt of each pair.
    """
    scores = prompt_scores(logits, chunk, aggregation)
    columns = [place for place, prompt in enumerate(chunk.prompts) for _ in prompt.label_ids]
    labels = [label for prompt in chunk.prompts for label in prompt.label_ids]
    numbers = [prompt.number for prompt in chunk.prompts for _ in prompt.label_ids]
    device = scores.device
    label_of, number_of = torch.tensor(labels, device=device), torch.tensor(numbers, device=device)
    pairs = scores[:, torch.tensor(columns, device=device)]  # (Q, pairs of prompt and label)
    for label in {label for label in labels if labels.count(label) > 1}:
        same = (label_of == label).nonzero().flatten()
        best = pairs[:, same].argmax(1, keepdim=True)
        loses = torch.ones(pairs.shape[0], len(same), dtype=torch.bool, device=device).scatter(1, best, False)
        pairs[:, same] = pairs[:, same].masked_fill(loses, -1.0)
    return pairs, label_of, number_of


def select_candidates(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    chunk: TextChunk,
    thresholds: Tensor,
    aggregation: Aggregation,
    most: int,
) -> Candidates:
    """The best pairs of query and label in one image and one chunk.

    A query may carry several labels, each judged by its own threshold. Of a label's several prompts the best
    counts.

    Args:
        logits: (Q, T); boxes_cxcywh: (Q, 4); thresholds: (K,), one for each label of the plan.
        most: at most so many pairs, the best ones.
    """
    pairs, label_of, number_of = score_pairs(logits, chunk, aggregation)
    queries, places = (pairs >= thresholds[label_of]).nonzero(as_tuple=True)
    values = pairs[queries, places]
    if len(values) > most:
        values, top = values.topk(most)
        queries, places = queries[top], places[top]
    return Candidates(boxes_cxcywh[queries].float(), values, label_of[places], number_of[places])
