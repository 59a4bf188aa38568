"""What storing MiniLM in int8 costs: how far phrase vectors move, and whether phrases keep their class."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from compose import embed_phrases
from names import HELD_OUT_SYNONYMS, memory
from safetensors.torch import load_file

from groundingml.models import load_model, load_tokenizer
from groundingml.models.grounding_dino.dense_proposals import DenseProposals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minilm", type=Path, required=True, help="model.safetensors of all-MiniLM-L6-v2")
    args = parser.parse_args()
    tokenizer = load_tokenizer("nano")
    stored = load_model("nano")
    exact = load_model("nano")
    weights = {f"text_encoder.bert.{name}": value for name, value in load_file(args.minilm).items()}
    exact.load_state_dict({n: v for n, v in weights.items() if n in exact.state_dict()}, strict=False)
    entries = memory()
    phrases = list(dict.fromkeys([phrase for phrase, _ in entries] + list(HELD_OUT_SYNONYMS.values())))
    before, after = (embed_phrases(model, phrases, tokenizer) for model in (exact, stored))
    cosine = (before * after).sum(dim=-1)
    print(f"{len(phrases)} phrases; cosine of exact and stored vectors:", end=" ")
    print(f"least {cosine.min():.4f}, mean {cosine.mean():.4f}")
    assert isinstance(exact.proposals, DenseProposals)
    assert isinstance(stored.proposals, DenseProposals)
    vectors = embed_phrases(exact, [phrase for phrase, _ in entries], tokenizer)
    exact.proposals.names.fill(vectors, torch.tensor([number for _, number in entries]))
    meant, kept = exact.proposals.names(before[None])[0], stored.proposals.names(after[None])[0]
    sure = meant.amax(dim=-1) > 0.5
    same = (meant.argmax(dim=-1) == kept.argmax(dim=-1))[sure].float().mean()
    moved = (meant - kept).abs()
    print(f"of {int(sure.sum())} that mean a class, {same:.1%} keep it")
    print(f"affinities move by {moved.mean():.5f} on average, at most {moved.max():.3f}")


if __name__ == "__main__":
    main()
