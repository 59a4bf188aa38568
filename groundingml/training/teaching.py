"""Making room in a small model for names that it is to be taught (see `taught_head` of its network)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from groundingml.inference.labels import Label
from groundingml.inference.prompts import PromptPlanner, Tokenizer
from groundingml.models.glip import Glip
from groundingml.models.grounding_dino import GroundingDino
from groundingml.models.grounding_dino.dense_proposals import DenseProposals, phrase_vectors
from groundingml.models.grounding_dino.taught_head import begin_as_copy, keep_rows
from groundingml.models.nanodet import NanoDet, NanoDetConfig


def can_be_taught(model: GroundingDino | Glip) -> bool:
    """Whether the model is a small one, whose new names get a head of their own."""
    return isinstance(model, GroundingDino) and isinstance(model.proposals, DenseProposals)


def teach_names(model: GroundingDino, tokenizer: Tokenizer, names: Sequence[str]) -> GroundingDino:
    """The same model with room for ``names`` in its taught head; those that it was taught before stay.

    A name that is like known ones begins with what the model knows about those. The given model must not be
    used afterwards: the new one shares its weights.

    Raises:
        ValueError: a model without dense proposals. PromptError: a name that its vocabulary cannot express.
    """
    proposals, backbone = model.proposals, model.backbone
    if not isinstance(proposals, DenseProposals) or not isinstance(backbone, NanoDet):
        raise ValueError("only a model with dense proposals has a taught head")
    former = model.config.taught_names
    everything = tuple(dict.fromkeys((*former, *(name.strip().lower() for name in names))))
    if everything == former:
        return model
    assert isinstance(model.config.backbone, NanoDetConfig)
    config = replace(
        model.config,
        backbone=replace(model.config.backbone, return_stages=True),
        taught_names=everything,
    )
    taught = GroundingDino(config)
    taught.load_state_dict(model.state_dict() | _of_head(taught))
    device = next(model.parameters()).device
    assert isinstance(taught.proposals, DenseProposals)
    head = taught.proposals.taught
    assert head is not None
    vectors = embed_phrases(model, everything, tokenizer)
    begin_as_copy(head, backbone, proposals.detector, vectors, proposals.names(vectors[None])[0])
    if proposals.taught is not None:
        keep_rows(head, proposals.taught, [everything.index(name) for name in former])
    return taught.to(device).train(model.training)


@torch.no_grad()
def embed_phrases(model: GroundingDino, phrases: Sequence[str], tokenizer: Tokenizer) -> Tensor:
    """The vectors that the network itself sees for each phrase in any prompt: (N, H), of length 1.

    Raises:
        PromptError: a phrase that the vocabulary cannot express.
    """
    device = next(model.parameters()).device
    planner = PromptPlanner(tokenizer, model.config.max_text_len, model.config.delimiter_token_ids)
    vectors = []
    for phrase in phrases:
        (chunk,) = planner.plan_labels([Label(phrase)]).chunks
        text = model.encode_text(torch.tensor([chunk.input_ids], device=device))
        per_token, is_word = phrase_vectors(text.hidden, text.block_mask)
        vectors.append(per_token[is_word][0])
    return torch.stack(vectors)


def _of_head(model: GroundingDino) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if ".taught." in name}
