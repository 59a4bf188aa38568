"""The sizes and conventions of GLIP-T (A, B, C), GLIP-T and GLIP-L."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from groundingml.models.grounding_dino.config import BERT_BASE, SWIN_LARGE, SWIN_TINY
from groundingml.models.swin import SwinConfig


@dataclass(frozen=True)
class GlipConfig:
    """Sizes and conventions; the defaults are GLIP-T, whose variants B and C differ in training data only.

    Raises:
        ValueError: fields that do not fit together, with the reason.
    """

    family: ClassVar[str] = "glip"
    proposals: ClassVar[str] = "anchors"
    """How boxes come about: one anchor for each cell of each level, and no selection."""

    backbone: SwinConfig = SWIN_TINY
    text_config: dict[str, Any] = field(default_factory=lambda: dict(BERT_BASE))
    """Keyword arguments of transformers' BertConfig."""
    d_model: int = 256
    """C, the width of the pyramid and of the tower."""
    tower_layers: int = 6
    fused: bool = True
    """Whether image and text look at each other in every layer of the tower; not in GLIP-T (A)."""
    fusion_dim: int = 2048
    fusion_heads: int = 8
    group_norm_groups: int = 16
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Of the pyramid's levels: those of the backbone, then two that strided convolutions make."""
    anchor_scale: int = 8
    """An anchor's side in strides."""

    max_text_len: int = 256
    delimiter_token_ids: tuple[int, ...] = ()
    """None: a prompt is one caption in which every token sees every other."""

    image_size: tuple[int, int] = (800, 1333)
    """The short side is scaled to the first size, or less where the long side would exceed the second."""
    size_divisor: int = 32
    """Images are padded with zeros to multiples of it."""
    image_mean: tuple[float, float, float] = (123.675 / 255, 116.28 / 255, 103.53 / 255)
    """RGB, like `image_std`. The original reads BGR: its first convolution is turned around on loading."""
    image_std: tuple[float, float, float] = (58.395 / 255, 57.12 / 255, 57.375 / 255)

    score_aggregation: str = "mean"
    """How a label's score is made of the scores of its tokens."""
    least_class_score: float = 0.05
    """A cell is a candidate for a label from this score on, before centerness comes in."""
    candidates_per_level: int = 1000
    nms_iou: float = 0.6
    max_detections: int = 100
    default_threshold: float = 0.5
    """Lowest score of a reported box unless the caller says otherwise (as in the original's demo)."""

    def __post_init__(self) -> None:
        for name in ("strides", "delimiter_token_ids", "image_size", "image_mean", "image_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        levels = len(self.backbone.out_stages)
        if len(self.strides) != levels + 2:
            raise ValueError(
                f"{len(self.strides)} strides, but the backbone's maps and two more make {levels + 2}"
            )
        for width, divisor in (("d_model", "group_norm_groups"), ("fusion_dim", "fusion_heads")):
            if getattr(self, width) % getattr(self, divisor):
                raise ValueError(
                    f"{width}={getattr(self, width)} is not a multiple of {divisor}={getattr(self, divisor)}"
                )
        if "hidden_size" not in self.text_config:
            raise ValueError('text_config needs BERT\'s sizes (at least "hidden_size"); see config.BERT_BASE')

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back."""
        return {"family": self.family, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GlipConfig:
        """Read `to_dict`'s values.

        Raises:
            ValueError: unknown fields, or a model of another family.
        """
        values = dict(values)
        family = values.pop("family", cls.family)
        if family != cls.family:
            raise ValueError(f"this is the config of a {family!r} model, not of GLIP")
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"not fields of a GlipConfig: {', '.join(unknown)}")
        if isinstance(values.get("backbone"), Mapping):
            values["backbone"] = SwinConfig(**values["backbone"])
        return cls(**values)

    @classmethod
    def tiny_a(cls) -> GlipConfig:
        """glip_a_tiny_o365.pth: image and text meet in the scores only."""
        return cls(fused=False)

    @classmethod
    def tiny(cls) -> GlipConfig:
        """glip_tiny_model_o365.pth (B), _goldg.pth (C) and _goldg_cc_sbu.pth (GLIP-T)."""
        return cls()

    @classmethod
    def large(cls) -> GlipConfig:
        """glip_large_model.pth."""
        return cls(backbone=SWIN_LARGE, tower_layers=8)
