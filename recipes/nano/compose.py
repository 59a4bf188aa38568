"""The embedded model before any training: NanoDet, MiniLM and the names that tie them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from nanodet_weights import load_nanodet
from safetensors.torch import load_file
from torch import Tensor

from groundingml.inference.prompts import Tokenizer
from groundingml.models.checkpoints.native import pack, unpack
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
    default_threshold=0.35,
)


def compose(
    nanodet_json: Path,
    minilm: Path,
    names: Mapping[str, Sequence[str]],
    unknown: Sequence[str],
    tokenizer: Tokenizer,
) -> GroundingDino:
    """The model at step 0.

    Args:
        nanodet_json: `nanodet.json` beside its `nanodet.bin`.
        minilm: `model.safetensors` of all-MiniLM-L6-v2.
        names: for each of NanoDet's classes, in its order, the names that mean it.
        unknown: names of other things, to keep them apart.
        tokenizer: the BERT tokenizer.
    """
    phrases = [phrase for group in names.values() for phrase in group] + list(unknown)
    classes = [index for index, group in enumerate(names.values()) for _ in group] + [len(names)] * len(
        unknown
    )
    model = GroundingDino(replace(CONFIG, known_names=len(phrases))).eval()
    nanodet, head = load_nanodet(nanodet_json)
    model.backbone.load_state_dict(nanodet.state_dict())
    assert isinstance(model.proposals, DenseProposals)
    model.proposals.detector.load_state_dict(head.state_dict())
    load_text_encoder(model, minilm)
    model.proposals.names.fill(embed_phrases(model, phrases, tokenizer), torch.tensor(classes))
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
