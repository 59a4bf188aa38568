"""One entry for every kind of model: ours by name, transformers' by ``hf:``, a vendor's by ``api:``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from groundingml.inference.detector import Detector
from groundingml.inference.object_detector import ObjectDetector

if TYPE_CHECKING:
    from groundingml.models.glip import GlipConfig
    from groundingml.models.grounding_dino.config import GroundingDinoConfig

HF_PREFIX = "hf:"
API_PREFIX = "api:"


def load_detector(
    source: str | os.PathLike[str] = "nano",
    device: str | torch.device = "auto",
    dtype: str = "auto",
    config: GroundingDinoConfig | GlipConfig | dict[str, Any] | None = None,
    *,
    allow_cloud: bool = False,
    digest: bool = True,
) -> ObjectDetector:
    """Load whatever ``source`` names.

    Args:
        source: a short name, a hub id, a folder or a file of a model of ours; ``hf:`` and a hub id or folder
            of another detector of transformers; ``api:`` and the name of a model that a vendor runs.
        device, dtype, config: as in ``Detector.from_pretrained``; ``config`` only for models of ours.
        allow_cloud: whether images may leave this machine, without which ``api:`` is refused.
        digest: identify the weights, for which they are read once more.

    Raises:
        CheckpointError (a ValueError): it is not found or does not load; the message says what to do.
        ValueError: an unknown or missing device, or a cloud model that is not allowed or has no token.
    """
    text = os.fspath(source)
    if isinstance(source, str) and text.startswith(HF_PREFIX):
        from groundingml.inference.transformers_detector import TransformersDetector

        return TransformersDetector.from_pretrained(text, device, dtype, digest=digest)
    if isinstance(source, str) and text.startswith(API_PREFIX):
        from groundingml.inference.cloud_detector import CloudDetector

        return CloudDetector(text, allow_cloud=allow_cloud)
    return Detector.from_pretrained(source, device, dtype, config, digest=digest)


def source_digest(source: str | os.PathLike[str]) -> str:
    """The ``checkpoint_digest`` of what ``source`` names, without loading it.

    Raises:
        CheckpointError: it is not found.
    """
    text = os.fspath(source)
    if isinstance(source, str) and text.startswith(HF_PREFIX):
        from groundingml.inference.transformers_detector import transformers_digest

        return transformers_digest(text)
    if isinstance(source, str) and text.startswith(API_PREFIX):
        from groundingml.inference.cloud_detector import cloud_digest

        return cloud_digest(text)
    from groundingml.models import checkpoint_digest

    return checkpoint_digest(source if isinstance(source, str) else Path(source))


def runs_elsewhere(source: object) -> bool:
    """Whether a source is computed by a vendor's service, so that more processes here make nothing faster."""
    return isinstance(source, str) and source.startswith(API_PREFIX)
