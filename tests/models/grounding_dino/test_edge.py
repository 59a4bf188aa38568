"""The Edge architecture: its enhancer, a tiny one that learns, and its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from groundingml.inference import Detector
from groundingml.models import load_model, load_tokenizer
from groundingml.models.checkpoints.save import save_pretrained
from groundingml.models.efficientvit import EfficientVitConfig
from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig
from groundingml.training import ImageDataset, StepReport, Trainer, TrainingConfig, read_coco

SIDE = 64
TEXT = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 256,
}


def tiny_edge() -> GroundingDino:
    torch.manual_seed(0)
    config = replace(
        GroundingDinoConfig.edge(),
        backbone=EfficientVitConfig(widths=(8, 16, 16, 32, 32), depths=(1, 1, 1, 1, 1), head_dim=16),
        text_config=TEXT,
        d_model=32,
        num_queries=20,
        decoder_layers=2,
        encoder_heads=2,
        decoder_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        fusion_dim=32,
        fusion_heads=2,
        text_heads=2,
        text_ffn_dim=32,
        group_norm_groups=8,
        image_size=(SIDE, SIDE),
        default_threshold=0.3,
    )
    return GroundingDino(config)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A red square; a blue one beside a small red one."""
    drawings = [[(1, "red", (8, 8, 40, 40))], [(2, "blue", (24, 16, 60, 52)), (1, "red", (2, 2, 22, 22))]]
    images, boxes = [], []
    for number, shapes in enumerate(drawings, start=1):
        picture = Image.new("RGB", (SIDE, SIDE), "gray")
        for category, colour, (x0, y0, x1, y1) in shapes:
            ImageDraw.Draw(picture).rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": category, **box})
        picture.save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
    names = [{"id": 1, "name": "red square"}, {"id": 2, "name": "blue square"}]
    content = {"images": images, "annotations": boxes, "categories": names}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


def test_the_published_sizes() -> None:
    config = GroundingDinoConfig.edge()
    assert config.backbone == EfficientVitConfig()  # EfficientViT-L1
    assert (config.enhancer, config.num_levels, config.backbone_levels) == ("edge", 3, 3)
    assert GroundingDinoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_only_the_coarsest_map_meets_the_text_and_the_others_hear_of_it() -> None:
    model = tiny_edge().eval()
    layer = model.enhancer.layers[0]
    seen: list[int] = []
    layer.fusion.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    ids = torch.tensor([[101, 2417, 1012, 102]])
    with torch.no_grad():
        layer.fusion.image_scale.fill_(1.0)
        image = model.encode_image(torch.randn(1, 3, SIDE, SIDE))
        outputs = [model.enhancer(image, model.encode_text(i))[0] for i in (ids, ids + (ids == 2417) * 9)]
    assert seen == [2 * 2, 2 * 2]
    finest = (outputs[0] - outputs[1])[:, : 8 * 8]
    assert (finest.abs().amax(dim=-1) > 1e-7).all()


def test_padding_changes_nothing_in_the_enhancer() -> None:
    """What lies under the mask: the same answer for any of it."""
    model = tiny_edge().eval()
    ids = torch.tensor([[101, 2417, 1012, 102]])
    mask = torch.zeros(1, SIDE, 96, dtype=torch.bool)
    mask[:, :, :64] = True
    with torch.no_grad():
        image = model.encode_image(torch.randn(1, 3, SIDE, 96), mask)
        assert image.mask is not None
        noise = torch.randn_like(image.tokens) * ~image.mask.unsqueeze(-1)
        text = model.encode_text(ids)
        expected = model.enhancer(image, text)
        found = model.enhancer(replace(image, tokens=image.tokens + noise), text)
    torch.testing.assert_close(found[0][image.mask], expected[0][image.mask], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-4)


def test_a_tiny_edge_learns_pictures(pictures: Path, tmp_path: Path) -> None:
    """Its loss falls, the boxes come, and the folder that it is saved to gives the same answers."""
    model = tiny_edge()
    tokenizer: Any = load_tokenizer("nano")
    config = TrainingConfig(
        epochs=90,
        batch_size=2,
        learning_rate=3e-3,
        frozen=("text_encoder.bert",),
        warmup_steps=5,
        drop_epochs=(70,),
        clip_norm=1.0,
        denoising=None,
    )
    reports: list[StepReport] = []
    dataset = ImageDataset(read_coco(pictures / "annotations.json", pictures), model.config)
    Trainer(model, tokenizer, dataset, config, tmp_path / "run", on_step=reports.append).fit()
    assert reports[-1].loss < reports[0].loss / 3

    labels = ["red square", "blue square"]
    model.eval()
    found = Detector(model, tokenizer)(pictures / "2.png", labels=labels, threshold=0.15)
    assert set(found.labels) == set(labels)
    best = torch.as_tensor(found.boxes_xyxy[found.labels.index("blue square")])
    torch.testing.assert_close(best.float(), torch.tensor([24.0, 16, 60, 52]), atol=7, rtol=0)

    save_pretrained(model, tmp_path / "version")
    loaded = load_model(tmp_path / "version")
    assert loaded.config == model.config
    again = Detector(loaded, tokenizer)(pictures / "2.png", labels=labels, threshold=0.15)
    assert again.labels == found.labels
    torch.testing.assert_close(torch.as_tensor(again.boxes_xyxy), torch.as_tensor(found.boxes_xyxy))
