"""The embedded model before any training: NanoDet, MiniLM and the names that tie them together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from names import memory
from nanodet_weights import load_nanodet
from safetensors.torch import load_file
from torch import Tensor

from groundingml.inference.prompts import Tokenizer
from groundingml.models import load_tokenizer
from groundingml.models.checkpoints.native import pack, unpack
from groundingml.models.checkpoints.sources import EMBEDDED
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.dense_proposals import DenseProposals, phrase_vectors
from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.nanodet import NanoDetConfig

MINILM_SIZES = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}

CONFIG = GroundingDinoConfig(
    family="nano",
    backbone=NanoDetConfig(),
    text_config=MINILM_SIZES,
    text_sees_cls=True,
    d_model=128,
    num_levels=3,
    num_queries=200,
    encoder_layers=1,
    decoder_layers=2,
    encoder_heads=4,
    decoder_heads=4,
    encoder_ffn_dim=512,
    decoder_ffn_dim=512,
    fusion_dim=128,
    fusion_heads=4,
    text_heads=4,
    text_ffn_dim=512,
    class_scale=128**-0.5,
    class_projection=True,
    share_class_head=False,
    share_box_head=False,
    proposals="dense",
    query_content="proposals",
    image_size=(416, 640),
    default_threshold=0.4,
)


def compose(
    nanodet_json: Path, minilm: Path, names: Sequence[tuple[str, int]], tokenizer: Tokenizer
) -> GroundingDino:
    """The model at step 0.

    Args:
        nanodet_json: `nanodet.json` beside its `nanodet.bin`.
        minilm: `model.safetensors` of all-MiniLM-L6-v2.
        names: phrases and the class that each means (`names.memory`).
        tokenizer: the BERT tokenizer.
    """
    torch.manual_seed(0)
    model = GroundingDino(replace(CONFIG, known_names=len(names))).eval()
    nanodet, head = load_nanodet(nanodet_json)
    model.backbone.load_state_dict(nanodet.state_dict())
    assert isinstance(model.proposals, DenseProposals)
    model.proposals.detector.load_state_dict(head.state_dict())
    load_text_encoder(model, minilm)
    vectors = embed_phrases(model, [phrase for phrase, _ in names], tokenizer)
    model.proposals.names.fill(vectors, torch.tensor([number for _, number in names]))
    return model


def load_text_encoder(model: GroundingDino, minilm: Path) -> None:
    """MiniLM's weights as they will be after storage in int8, so that all that follows is fitted to those."""
    weights = load_file(minilm)
    prefix = "text_encoder.bert."
    wanted = [name for name in model.state_dict() if name.startswith(prefix)]
    stored = unpack(pack({name: weights[name.removeprefix(prefix)] for name in wanted}))
    model.load_state_dict(stored, strict=False)


@torch.no_grad()
def embed_phrases(model: GroundingDino, phrases: Sequence[str], tokenizer: Tokenizer) -> Tensor:
    """The vectors that the network itself would see for each phrase in any prompt: (N, H), of length 1."""
    vectors = []
    for phrase in phrases:
        encoded = tokenizer(f"{phrase} .", return_tensors="pt")
        text = model.encode_text(encoded["input_ids"], encoded["attention_mask"])
        per_token, is_word = phrase_vectors(text.hidden, text.block_mask)
        vectors.append(per_token[is_word][0])
    return torch.stack(vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanodet", type=Path, required=True, help="nanodet.json beside nanodet.bin")
    parser.add_argument("--minilm", type=Path, required=True, help="model.safetensors of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model at step 0")
    args = parser.parse_args()
    model = compose(args.nanodet, args.minilm, memory(), load_tokenizer("nano"))
    model.save_pretrained(args.out)
    (args.out / "tokenizer.json").write_bytes((EMBEDDED / "nano" / "tokenizer.json").read_bytes())


if __name__ == "__main__":
    main()
