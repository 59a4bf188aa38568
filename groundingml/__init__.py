"""groundingml: open-vocabulary object detection for Label Studio, with a compiled attention op.

>>> from groundingml import Detector
>>> detector = Detector.from_pretrained("nano")
>>> detector("photo.jpg", labels=["cat", "remote control"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from groundingml.inference import Detections, Detector, Label

__version__ = "0.1.0"
__all__ = ["Detections", "Detector", "Label", "__version__"]


def __getattr__(name: str) -> object:
    """Import the public names on first use: ``import groundingml`` alone does not import torch (PEP 562)."""
    if name in {"Detections", "Detector", "Label"}:
        from groundingml import inference

        return getattr(inference, name)
    raise AttributeError(f"module 'groundingml' has no attribute {name!r}")
