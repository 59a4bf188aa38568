"""The networks, and loading them from every published format."""

from groundingml.models.checkpoints.errors import CheckpointError
from groundingml.models.load import (
    checkpoint_digest,
    load_model,
    load_tokenizer,
    model_folder,
    tokenizer_file,
)

__all__ = [
    "CheckpointError",
    "checkpoint_digest",
    "load_model",
    "load_tokenizer",
    "model_folder",
    "tokenizer_file",
]
