"""The Grounding DINO family as one network; read `network.py` first."""

from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.grounding_dino.outputs import (
    DenoisingQueries,
    GroundingDinoOutput,
    ImageFeatures,
    Proposals,
    TextFeatures,
    TrainingOutput,
)

__all__ = [
    "DenoisingQueries",
    "GroundingDino",
    "GroundingDinoConfig",
    "GroundingDinoOutput",
    "ImageFeatures",
    "Proposals",
    "TextFeatures",
    "TrainingOutput",
]
