"""A small random Grounding DINO and the shipped vocabulary: everything of the real thing but trained
weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertTokenizerFast

from groundingml.inference import Detector
from groundingml.inference.prompts import PromptPlanner
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.grounding_dino.outputs import GroundingDinoOutput, ImageFeatures, TextFeatures
from groundingml.models.swin import SwinConfig

PACKAGE = Path(__file__).resolve().parents[2] / "groundingml"


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(tokenizer_file=str(PACKAGE / "embedded" / "nano" / "tokenizer.json"))


@pytest.fixture(scope="session")
def planner(tokenizer: BertTokenizerFast) -> PromptPlanner:
    return PromptPlanner(tokenizer)


@pytest.fixture(scope="session")
def small_config() -> GroundingDinoConfig:
    return GroundingDinoConfig(
        backbone=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4),
        text_config={
            "vocab_size": 30522,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 512,
        },
        d_model=16,
        num_queries=30,
        encoder_layers=1,
        decoder_layers=2,
        encoder_heads=2,
        decoder_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        fusion_dim=16,
        fusion_heads=2,
        text_heads=2,
        text_ffn_dim=16,
        group_norm_groups=4,
        image_size=(64, 96),
        default_threshold=0.3,
    )


class CountingDino(GroundingDino):
    """The real network, counting its calls."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__(config)
        self.calls = {"image": 0, "text": 0, "ground": 0}

    def encode_image(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> ImageFeatures:
        self.calls["image"] += 1
        return super().encode_image(pixel_values, pixel_mask)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> TextFeatures:
        self.calls["text"] += 1
        return super().encode_text(input_ids, attention_mask, token_type_ids)

    def ground(
        self, image: ImageFeatures, text: TextFeatures, topk_indices: Tensor | None = None
    ) -> GroundingDinoOutput:
        self.calls["ground"] += 1
        return super().ground(image, text, topk_indices)


class PreparedDino(CountingDino):
    """The real network whose decoder output is replaced by answers prepared for it, one for each call of
    `ground`.

    An answer is a list of (box cxcywh, {token position: probability}); all other tokens get a probability
    near 0.
    """

    answers: list[list[tuple[tuple[float, float, float, float], dict[int, float]]]]

    def ground(
        self, image: ImageFeatures, text: TextFeatures, topk_indices: Tensor | None = None
    ) -> GroundingDinoOutput:
        real = super().ground(image, text, topk_indices)
        answer = self.answers[(self.calls["ground"] - 1) % len(self.answers)]
        assert len(answer) <= real.logits.shape[1]
        logits = torch.where(real.logits.isinf(), real.logits, torch.full_like(real.logits, -20.0))
        boxes = real.boxes_cxcywh.clone()
        for query, (box, tokens) in enumerate(answer):
            boxes[:, query] = torch.tensor(box)
            for position, probability in tokens.items():
                assert not logits[:, query, position].isinf().any(), "a prepared token lies past the text"
                logits[:, query, position] = torch.logit(torch.tensor(probability))
        return GroundingDinoOutput(logits, boxes, real.topk_indices)


@pytest.fixture
def detector(small_config: GroundingDinoConfig, tokenizer: BertTokenizerFast) -> Detector:
    torch.manual_seed(0)
    return Detector(
        CountingDino(small_config), tokenizer, device="cpu", checkpoint_digest="0" * 12, name="small"
    )


@pytest.fixture
def prepared(small_config: GroundingDinoConfig, tokenizer: BertTokenizerFast) -> Callable[..., Detector]:
    """prepared(answer, answer, ..., score_aggregation="mean") -> a detector that receives these answers."""

    def make(*answers: list, **changes: object) -> Detector:  # type: ignore[type-arg]
        torch.manual_seed(0)
        model = PreparedDino(replace(small_config, **changes))  # type: ignore[arg-type]
        model.answers = list(answers)
        return Detector(model, tokenizer, device="cpu")

    return make
