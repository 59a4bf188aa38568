"""One config for the whole family: Grounding DINO, MM-Grounding-DINO, LLMDet and the embedded model.

The families are the same network; what differs is here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from groundingml.models.efficientvit import EfficientVitConfig
from groundingml.models.nanodet import NanoDetConfig
from groundingml.models.swin import SwinConfig

BERT_BASE: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}

SWIN_TINY = SwinConfig()
SWIN_BASE = SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=12)
SWIN_LARGE = SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12)


BACKBONES = {"swin": SwinConfig, "nanodet": NanoDetConfig, "efficientvit": EfficientVitConfig}


@dataclass(frozen=True)
class GroundingDinoConfig:
    """Sizes and conventions of a model; the defaults are Grounding DINO tiny.

    Use a classmethod for an official model, `dataclasses.replace` to change one, and `from_dict` for a
    `config.json`, Hugging Face's or our own.

    Raises:
        ValueError: fields that do not fit together, with the reason.
    """

    family: str = "grounding-dino"
    """"grounding-dino", "mm-grounding-dino" (also LLMDet), "nano" or "edge": its checkpoint's layout."""

    backbone: SwinConfig | NanoDetConfig | EfficientVitConfig = SWIN_TINY
    text_config: dict[str, Any] = field(default_factory=lambda: dict(BERT_BASE))
    """Keyword arguments of transformers' BertConfig."""

    d_model: int = 256
    """C, the width of image tokens, text tokens and queries."""
    num_levels: int = 4
    """Feature levels; strided convolutions make those that the backbone does not give."""
    num_queries: int = 900
    """Q, at most: an image of fewer tokens has as many queries as tokens."""
    enhancer: str = "deformable"
    """"deformable" (every level meets the text) or "edge" (only the coarsest does, see `edge_enhancer`)."""
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_heads: int = 8
    """Heads of the deformable attention over image tokens."""
    decoder_heads: int = 8
    """Heads of all attention in the decoder."""
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    encoder_points: int = 4
    """Sampled points for each head, query and level."""
    decoder_points: int = 4
    fusion_dim: int = 1024
    """Width of the attention between image and text."""
    fusion_heads: int = 4
    fusion_drop_path: float = 0.1
    """Stochastic depth of the fusion in training."""
    text_heads: int = 4
    """Heads of the enhancer's self-attention over text."""
    text_ffn_dim: int = 1024
    position_temperature: float = 20.0
    """Of the sine embedding of image positions."""
    group_norm_groups: int = 32
    layer_norm_eps: float = 1e-5

    class_scale: float = 1.0
    """Factor of the dot product of query and text token: 1, or d_model ** -0.5 in MM-Grounding-DINO."""
    class_bias: bool = False
    """A learned constant added to class logits, one for the encoder and one for each decoder layer."""
    class_projection: bool = False
    """A linear layer on the queries before that product, begun with zero, to refine the proposals' logits."""
    share_class_head: bool = True
    """All decoder layers share one class head (without `class_bias` there is nothing to share)."""
    share_box_head: bool = True
    """All decoder layers share one box head; the encoder has its own in any case."""
    decoder_eps: float = 1e-3
    """Where `inverse_sigmoid` stops when the decoder refines a reference."""
    head_eps: float = 1e-3
    """The same where the head adds its change to the reference. transformers uses 1e-5 for both."""

    proposals: str = "two_stage"
    """"two_stage" (a box for every image token) or "dense" (a text-aligned head, see `dense_proposals`)."""
    known_names: int = 0
    """How many names the memory of dense proposals holds (see `dense_proposals.NameMemory`)."""
    taught_names: tuple[str, ...] = ()
    """Names that training taught a model with dense proposals (see `taught_head.TaughtHead`)."""
    query_content: str = "learned"
    """"learned" (an embedding for each rank) or "proposals" (the features of the selected proposal)."""

    max_text_len: int = 256
    """Columns of the class logits, and the most tokens that a prompt may have."""
    text_sees_cls: bool = False
    """Phrases also attend to [CLS] and positions begin at 1: sentence encoders collapse without it."""
    delimiter_token_ids: tuple[int, ...] = (101, 102, 1012, 1029)
    """Tokens that end a phrase: [CLS], [SEP], "." and "?" of BERT's uncased vocabulary."""

    image_size: tuple[int, int] = (800, 1333)
    """The short side is scaled to the first size, or less where the long side would exceed the second."""
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    score_aggregation: str = "max"
    """"max" or "mean": how a label's score is made of the scores of its tokens."""
    default_threshold: float = 0.35
    """Lowest score of a reported box unless the caller says otherwise."""

    def __post_init__(self) -> None:
        for name in ("delimiter_token_ids", "image_size", "image_mean", "image_std", "taught_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_choice("family", self.family, ("grounding-dino", "mm-grounding-dino", "nano", "edge"))
        _check_choice("enhancer", self.enhancer, ("deformable", "edge"))
        _check_choice("proposals", self.proposals, ("two_stage", "dense"))
        _check_choice("query_content", self.query_content, ("learned", "proposals"))
        _check_choice("score_aggregation", self.score_aggregation, ("max", "mean"))
        for name in ("encoder_heads", "decoder_heads", "text_heads", "group_norm_groups", "fusion_heads"):
            width = "fusion_dim" if name == "fusion_heads" else "d_model"
            if getattr(self, width) % getattr(self, name):
                raise ValueError(
                    f"{width}={getattr(self, width)} is not a multiple of {name}={getattr(self, name)}"
                )
        if self.taught_names and not (
            self.proposals == "dense" and getattr(self.backbone, "return_stages", False)
        ):
            raise ValueError(
                'taught_names need proposals="dense" and a NanoDet backbone with return_stages=True'
            )
        if self.d_model % 4:
            raise ValueError(f"d_model={self.d_model} is not a multiple of 4, which the sine embeddings need")
        if self.num_levels < self.backbone_levels:
            raise ValueError(
                f"num_levels={self.num_levels}, but the backbone returns {self.backbone_levels} maps; "
                "ask the backbone for fewer or raise num_levels"
            )
        if "hidden_size" not in self.text_config:
            raise ValueError('text_config needs BERT\'s sizes (at least "hidden_size"); see config.BERT_BASE')
        if self.max_text_len > self.text_config.get("max_position_embeddings", 512):
            raise ValueError(f"max_text_len={self.max_text_len} exceeds BERT's positions")
        for name in ("num_queries", "encoder_layers", "decoder_layers", "encoder_points", "decoder_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def backbone_levels(self) -> int:
        """How many maps the backbone returns."""
        if isinstance(self.backbone, NanoDetConfig):
            return len(self.backbone.strides)
        return len(self.backbone.out_stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back (our own layout, not Hugging Face's)."""
        values = asdict(self)
        kinds = {config: kind for kind, config in BACKBONES.items()}
        values["backbone"]["type"] = kinds[type(self.backbone)]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GroundingDinoConfig:
        """Read `to_dict`'s values, or the dict of a Hugging Face `config.json` (known by its "model_type").

        Raises:
            ValueError: unknown fields, or a model of another kind.
        """
        if "model_type" in values:
            from groundingml.models.checkpoints.huggingface import config_from_huggingface

            return config_from_huggingface(values)
        values = dict(values)
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"not fields of a GroundingDinoConfig: {', '.join(unknown)}")
        if isinstance(values.get("backbone"), Mapping):
            backbone = dict(values["backbone"])
            kind = backbone.pop("type", "swin")
            _check_choice("backbone type", kind, tuple(BACKBONES))
            backbone = {name: tuple(v) if isinstance(v, list) else v for name, v in backbone.items()}
            values["backbone"] = BACKBONES[kind](**backbone)
        return cls(**values)

    @classmethod
    def grounding_dino_tiny(cls) -> GroundingDinoConfig:
        """IDEA-Research/grounding-dino-tiny (groundingdino_swint_ogc.pth)."""
        return cls()

    @classmethod
    def grounding_dino_base(cls) -> GroundingDinoConfig:
        """IDEA-Research/grounding-dino-base (groundingdino_swinb_cogcoor.pth)."""
        return cls(backbone=SWIN_BASE)

    @classmethod
    def mm_grounding_dino_tiny(cls) -> GroundingDinoConfig:
        """openmmlab-community/mm_grounding_dino_tiny_*."""
        return cls(
            family="mm-grounding-dino",
            class_scale=256**-0.5,
            class_bias=True,
            share_class_head=False,
            share_box_head=False,
            decoder_eps=1e-3,
            head_eps=1e-5,
            score_aggregation="mean",
            default_threshold=0.3,
        )

    @classmethod
    def mm_grounding_dino_base(cls) -> GroundingDinoConfig:
        """openmmlab-community/mm_grounding_dino_base_*."""
        return replace(cls.mm_grounding_dino_tiny(), backbone=SWIN_BASE)

    @classmethod
    def mm_grounding_dino_large(cls) -> GroundingDinoConfig:
        """openmmlab-community/mm_grounding_dino_large_*: five levels, the first from stage 1."""
        backbone = replace(SWIN_LARGE, out_stages=(1, 2, 3, 4))
        return replace(cls.mm_grounding_dino_tiny(), backbone=backbone, num_levels=5)

    @classmethod
    def edge(cls) -> GroundingDinoConfig:
        """Grounding DINO 1.5 Edge as its report describes it (arXiv:2405.10300); no weights were published.

        Where the report gives no sizes, those of RT-DETR are taken: one layer of the enhancer, 300 queries,
        feed-forward blocks of 1024.
        """
        return cls(
            family="edge",
            backbone=EfficientVitConfig(),
            enhancer="edge",
            num_levels=3,
            num_queries=300,
            encoder_layers=1,
            encoder_ffn_dim=1024,
            decoder_ffn_dim=1024,
            image_size=(640, 640),
        )

    @classmethod
    def llmdet_tiny(cls) -> GroundingDinoConfig:
        """iSEE-Laboratory/llmdet_tiny: at inference exactly MM-Grounding-DINO tiny."""
        return cls.mm_grounding_dino_tiny()

    @classmethod
    def llmdet_base(cls) -> GroundingDinoConfig:
        """iSEE-Laboratory/llmdet_base."""
        return cls.mm_grounding_dino_base()

    @classmethod
    def llmdet_large(cls) -> GroundingDinoConfig:
        """iSEE-Laboratory/llmdet_large."""
        return cls.mm_grounding_dino_large()


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
