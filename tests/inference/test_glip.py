"""The Detector with a GLIP model: the same path, prompts as one caption."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from groundingml.inference import Detector
from groundingml.inference.labels import normalise_labels
from groundingml.inference.prompts import PromptPlanner
from groundingml.models.glip import Glip, GlipConfig
from groundingml.models.grounding_dino.config import BERT_BASE
from groundingml.models.swin import SwinConfig


@pytest.fixture(scope="module")
def caption_planner(tokenizer) -> PromptPlanner:
    return PromptPlanner(tokenizer, delimiter_ids=GlipConfig.delimiter_token_ids)


@pytest.fixture(scope="module")
def detector(tokenizer) -> Detector:
    torch.manual_seed(0)
    config = GlipConfig(
        backbone=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4),
        text_config=BERT_BASE
        | {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        d_model=32,
        tower_layers=1,
        fusion_dim=16,
        fusion_heads=2,
        image_size=(64, 96),
        default_threshold=0.2,
    )
    model = Glip(config)
    with torch.no_grad():
        model.head.bias.fill_(0.0)
        model.head.text_projection.weight.mul_(20)
    return Detector(model, tokenizer, device="cpu")


@pytest.fixture(scope="module")
def photo(photo_dir) -> Image.Image:
    return Image.open(photo_dir / "cat.jpg").convert("RGB").resize((120, 90))


def words(plan, tokenizer) -> list[str]:
    return [" ".join(tokenizer.convert_ids_to_tokens(chunk.input_ids)) for chunk in plan.chunks]


def test_labels_are_one_caption_without_a_last_dot(caption_planner, tokenizer):
    plan = caption_planner.plan_labels(normalise_labels(["person", "traffic light", "remote control"]))
    assert words(plan, tokenizer) == ["[CLS] person . traffic light . remote control [SEP]"]
    assert [prompt.positions for prompt in plan.chunks[0].prompts] == [(1,), (3, 4), (6, 7)]


def test_a_caption_is_left_as_it_stands(caption_planner, tokenizer):
    plan = caption_planner.plan_caption("A cat sits on the U.S. flag")
    assert words(plan, tokenizer) == ["[CLS] a cat sits on the u . s . flag [SEP]"]
    tokens = tokenizer.convert_ids_to_tokens(plan.chunks[0].input_ids)
    assert "cat" in [tokens[i] for prompt in plan.chunks[0].prompts for i in prompt.positions]


def test_many_labels_go_into_several_captions(caption_planner):
    plan = caption_planner.plan_labels(normalise_labels([f"thing {number}" for number in range(200)]))
    assert len(plan.chunks) > 1
    assert all(len(chunk.input_ids) <= 256 for chunk in plan.chunks)
    dot = plan.chunks[0].input_ids[3]
    assert all(chunk.input_ids[-2] != dot for chunk in plan.chunks)
    assert sum(len(chunk.prompts) for chunk in plan.chunks) == 200


def test_labels(detector, photo):
    found = detector(photo, labels=["cat", "remote control"], threshold=0)
    assert 2 < len(found) <= 100
    assert set(found.labels) == {"cat", "remote control"}
    assert (np.diff(found.scores) <= 0).all()
    assert found.image_size == (90, 120)
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= [120, 90, 120, 90]).all()
    assert len(detector(photo, labels=["cat", "remote control"])) == (found.scores >= 0.2).sum()


def test_caption(detector, photo):
    found = detector(photo, caption="a cat on a sofa", threshold=0)
    assert set(found.labels) == {"cat", "sofa"}


def test_a_batch_gives_what_single_images_give(detector, photo):
    other = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tall = photo.resize((70, 110))
    many = detector([photo, tall, other], labels=["cat", "dog"], threshold=0, batch_size=3)
    for image, found in zip((photo, tall, other), many, strict=True):
        alone = detector(image, labels=["cat", "dog"], threshold=0)
        assert found.labels == alone.labels
        assert np.allclose(found.boxes_xyxy, alone.boxes_xyxy, atol=1e-2)


def test_more_labels_than_a_caption_holds_give_the_best_hundred(detector, photo):
    found = detector(photo, labels=[f"thing {number}" for number in range(150)], threshold=0)
    assert len(found) == 100
    assert len(set(found.labels)) > 10


def test_at_most_one_box_of_a_label_in_a_place(detector, photo):
    found = detector(photo, labels=["cat"], threshold=0)
    boxes = torch.from_numpy(found.boxes_xyxy)
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    iou = shared / (area[:, None] + area[None] - shared)
    assert iou.fill_diagonal_(0).max() < 0.65


def test_low_precision_finds_much_the_same(detector, tokenizer, photo):
    low = Detector(detector.model, tokenizer, device="cpu", dtype="bfloat16")
    found = low(photo, labels=["cat"], threshold=0)
    expected = detector(photo, labels=["cat"], threshold=0)
    assert np.abs(found.scores[:5] - expected.scores[:5]).max() < 0.05


def test_an_encoded_image_gives_identical_answers(detector, photo):
    encoded = detector.encode(photo)
    for labels in (["cat", "dog"], ["remote control"], ["cat", "dog"]):
        kept, anew = detector.detect_encoded(encoded, labels), detector(photo, labels=labels)
        assert kept.labels == anew.labels
        np.testing.assert_array_equal(kept.boxes_xyxy, anew.boxes_xyxy)
        np.testing.assert_array_equal(kept.scores, anew.scores)
    assert encoded.nbytes >= sum(one.nbytes for one in encoded.features.maps)
