"""The models and inputs of benchmarks/end_to_end.py. Imports are inside: its parent process needs none."""

from __future__ import annotations

import copy
from typing import Any

TOKENS = 25
LABELS = 1203


def build_models() -> tuple[Any, Any]:
    """transformers' Grounding DINO tiny and ours with equal random weights, in eval mode."""
    import torch
    import transformers

    from groundingml.models.checkpoints.huggingface import (
        config_from_huggingface,
        config_to_huggingface,
        from_huggingface_names,
    )
    from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig
    from groundingml.models.skeleton import without_values

    values = copy.deepcopy(config_to_huggingface(GroundingDinoConfig.grounding_dino_tiny()))
    values.pop("groundingml", None)
    theirs = transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig(**values))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        # Keep activations near 1 and logits small, so that outputs compare and points stay in the image.
        if "norm" in name.lower() and name.endswith("weight"):
            last = ("decoder.layer_norm.weight", "enc_output_norm.weight", ".layer_norm_after.weight")
            value = (1 + 0.1 * noise) * (0.3 if name.endswith(last) else 1.0)
        elif name.endswith(("vision_param", "text_param")):
            value = 0.5 + 0.2 * noise
        elif name.endswith("sampling_offsets.bias"):
            value = 1.5 * noise
        elif parameter.ndim < 2:
            value = 0.1 * noise
        else:
            value = noise / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)
    # With eager attention transformers adds BERT's boolean mask to the scores instead of applying it.
    theirs.model.text_backbone.set_attn_implementation("sdpa")
    with without_values():
        ours = GroundingDino(config_from_huggingface(values))
    weights = from_huggingface_names(theirs.state_dict(), ours.config)
    ours.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    return theirs.eval(), ours.eval()


def token_ids(generator: Any) -> Any:
    """(1, TOKENS): phrases of five words."""
    import torch

    ids = torch.randint(2000, 20000, (TOKENS,), generator=generator)
    ids[0], ids[-1], ids[6::6], ids[-2] = 101, 102, 1012, 1012  # [CLS], [SEP] and "."
    return ids[None]


def label_names() -> list[str]:
    """As many names of one to three words as LVIS has categories."""
    import random

    from groundingml.models import load_tokenizer

    chooser = random.Random(0)
    words = sorted(word for word in load_tokenizer("nano").get_vocab() if word.isalpha() and len(word) > 3)
    names: dict[str, None] = {}
    while len(names) < LABELS:
        names[" ".join(chooser.sample(words, chooser.choice((1, 1, 1, 2, 2, 3))))] = None
    return list(names)
