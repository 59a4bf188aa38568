"""The embedded model before any training: NanoDet's weights, MiniLM's weights and the closed-form map between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from nanodet_weights import load_nanodet
from safetensors.torch import load_file
from torch import Tensor, nn

from groundingml.models.checkpoints.native import pack, unpack
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.dense_proposals import DenseProposals, phrase_vectors
from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.nanodet import NanoDetConfig, NanoDetHead

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
    tokenizer: object,
    ridge: float = 0.01,
) -> GroundingDino:
    """The model at step 0.

    Args:
        nanodet_json: `nanodet.json` beside its `nanodet.bin`.
        minilm: `model.safetensors` of all-MiniLM-L6-v2.
        names: for each of NanoDet's classes, in its order, the names that shall give its row of the classifier.
        tokenizer: the BERT tokenizer.
        ridge: weight of the penalty in the regression.
    """
    model = GroundingDino(CONFIG).eval()
    nanodet, head = load_nanodet(nanodet_json)
    model.backbone.load_state_dict(nanodet.state_dict())
    assert isinstance(model.proposals, DenseProposals)
    model.proposals.detector.boxes.load_state_dict(head.boxes.state_dict())
    load_text_encoder(model, minilm)
    classes = torch.tensor([index for index, phrases in enumerate(names.values()) for _ in phrases])
    phrases = [phrase for group in names.values() for phrase in group]
    fit_class_rows(model.proposals.class_rows, embed_phrases(model, phrases, tokenizer), classes, head, ridge)
    return model


def load_text_encoder(model: GroundingDino, minilm: Path) -> None:
    """MiniLM's weights as they will be after storage in int8, so that all that follows is fitted to those."""
    weights = load_file(minilm)
    prefix = "text_encoder.bert."
    wanted = [name for name in model.state_dict() if name.startswith(prefix)]
    stored = unpack(pack({name: weights[name.removeprefix(prefix)] for name in wanted}))
    model.load_state_dict(stored, strict=False)


@torch.no_grad()
def embed_phrases(model: GroundingDino, phrases: Sequence[str], tokenizer: object) -> Tensor:
    """The vectors that the network itself would see for each phrase in any prompt: (N, H), of length 1."""
    vectors = []
    for phrase in phrases:
        encoded = tokenizer(f"{phrase} .", return_tensors="pt")  # type: ignore[operator]
        text = model.encode_text(encoded["input_ids"], encoded["attention_mask"])
        per_token, is_word = phrase_vectors(text.hidden, text.block_mask)
        vectors.append(per_token[is_word][0])
    return torch.stack(vectors)


@torch.no_grad()
def fit_class_rows(
    class_rows: nn.ModuleList, vectors: Tensor, classes: Tensor, head: NanoDetHead, ridge: float
) -> None:
    """Ridge regression, for each level, from phrase vectors (N, H) to the classifier rows of `classes` (N,).

    Vectors are centred and scaled by 3 (their spread is about a third of their length); the regression starts from
    the mean row, which is what a phrase far from all names gets.
    """
    scale = 3.0
    centre = vectors.mean(dim=0)
    centred = torch.cat([(vectors - centre) * scale, torch.ones(len(vectors), 1)], dim=1).double()
    gram = centred @ centred.T + ridge * torch.eye(len(vectors), dtype=torch.float64)
    assert head.classes is not None
    for layer, level in zip(class_rows, head.classes, strict=True):
        rows = torch.cat([level.weight, level.bias.unsqueeze(1)], dim=1)
        mean = rows.mean(dim=0)
        solution = (centred.T @ torch.linalg.solve(gram, (rows[classes] - mean).double())).float()
        weight = solution[:-1].T * scale
        layer.weight.copy_(weight)
        layer.bias.copy_(solution[-1] + mean - weight @ centre)
