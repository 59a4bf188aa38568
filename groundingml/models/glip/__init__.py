"""GLIP (arXiv:2112.03857): a one-stage detector whose classes are the words of a caption."""

from groundingml.models.glip.config import GlipConfig
from groundingml.models.glip.network import Glip
from groundingml.models.glip.outputs import GlipImageFeatures, GlipOutput, GlipTextFeatures

__all__ = ["Glip", "GlipConfig", "GlipImageFeatures", "GlipOutput", "GlipTextFeatures"]
