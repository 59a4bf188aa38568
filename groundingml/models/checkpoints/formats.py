"""Which software wrote a checkpoint, told by the names of its parameters, and the way to the common names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from groundingml.models.checkpoints import mmdet, original
from groundingml.models.checkpoints.errors import CheckpointError, listed

# Part of a name, and whose it is: models that people mistake for these.
_FOREIGN = {
    "sampling_offsets.": "a detector without a text branch (DINO, Deformable DETR or the like)",
    "vision_model.encoder.layers.": "a CLIP-like model (OWL-ViT, SigLIP)",
    "bert.encoder.layer.": "a BERT text model without a detector",
    "relative_position_bias_table": "an image backbone without a detector",
}


def to_huggingface_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of any supported format under the names of the Hugging Face layout.

    Raises:
        CheckpointError: parameters of no known format, saying what they look like.
    """
    names = set(weights)
    if original.is_original(names):
        return original.to_huggingface_names(weights)
    if mmdet.is_mmdet(names):
        return mmdet.to_huggingface_names(weights)
    if is_huggingface(names):
        return dict(weights)
    for part, owner in _FOREIGN.items():
        if any(part in name for name in names):
            raise CheckpointError(f"it is {owner}; its parameters begin with {listed(weights)}")
    raise CheckpointError(
        "its parameters are those of no known Grounding DINO format (Hugging Face, the original repository, "
        f"MMDetection): {listed(weights)}"
    )


def is_huggingface(names: set[str]) -> bool:
    """Whether these are names of transformers' Grounding DINO or MM-Grounding-DINO."""
    return any(name.startswith("model.encoder.layers.0.fusion_layer.") for name in names)
