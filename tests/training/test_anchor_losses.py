"""GLIP's assignment and losses against numbers worked out by hand, and GLIP in the trainer."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from groundingml.inference import Detector
from groundingml.models import load_model
from groundingml.models.checkpoints.save import save_pretrained
from groundingml.models.glip import Glip, GlipConfig
from groundingml.models.glip.anchors import anchors_xyxy
from groundingml.models.glip.box_coder import encode
from groundingml.models.glip.outputs import GlipOutput
from groundingml.models.swin import SwinConfig
from groundingml.training import ImageDataset, StepReport, Trainer, TrainingConfig, read_coco
from groundingml.training.anchor_losses import anchor_losses, anchor_targets
from groundingml.training.atss import assign, centerness, pixel_iou
from groundingml.training.losses import LossConfig
from groundingml.training.targets import Target


def grid(shapes: tuple[tuple[int, int], ...], strides: tuple[int, ...]) -> tuple[torch.Tensor, list[int]]:
    anchors = anchors_xyxy(shapes, strides, 2, torch.device("cpu"))
    return anchors, [height * width for height, width in shapes]


def test_pixel_iou_counts_the_last_pixel():
    a = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    b = torch.tensor([[5.0, 0.0, 14.0, 9.0], [0.0, 0.0, 9.0, 9.0], [10.0, 0.0, 19.0, 9.0]])
    torch.testing.assert_close(pixel_iou(a, b), torch.tensor([[50 / 150, 1.0, 0.0]]))


def test_assignment_by_hand():
    """A row of three anchors of 16 pixels, 8 apart; the box is the middle one moved by a pixel."""
    anchors, cells = grid(((1, 3),), (8,))
    assert anchors.tolist() == [[-4, -4, 11, 11], [4, -4, 19, 11], [12, -4, 27, 11]]
    box = torch.tensor([[5.0, -4.0, 20.0, 11.0]])
    overlaps = [7 / 25, 15 / 17, 9 / 23]
    mean = sum(overlaps) / 3
    least = mean + math.sqrt(sum((x - mean) ** 2 for x in overlaps) / 2)
    assert [x >= least for x in overlaps] == [False, True, False]
    found = assign(anchors, cells, box)
    assert (found.cells.tolist(), found.boxes.tolist()) == ([1], [0])


def test_candidates_are_the_nearest_of_each_level():
    anchors, cells = grid(((4, 4), (2, 2)), (8, 16))
    box = torch.tensor([[0.0, 0.0, 31.0, 31.0]])  # as large as an anchor of the second level
    found = assign(anchors, cells, box, per_level=4)
    # On the first level the four middle anchors, IoU 256 / 1024; on the second all four, the centres of which
    # lie in the box: 24 * 24 / (2 * 1024 - 576) each.
    near, far = 576 / (2 * 1024 - 576), 256 / 1024
    mean = (4 * near + 4 * far) / 8
    deviation = math.sqrt(4 * ((near - mean) ** 2 + (far - mean) ** 2) / 7)
    expected = [16, 17, 18, 19] if near >= mean + deviation else []
    assert found.cells.tolist() == expected


def test_an_anchor_wanted_twice_learns_the_box_it_overlaps_most():
    anchors, cells = grid(((1, 3),), (8,))
    boxes = torch.tensor([[6.0, -4.0, 21.0, 11.0], [4.0, -4.0, 19.0, 11.0]])
    found = assign(anchors, cells, boxes)
    assert (found.cells.tolist(), found.boxes.tolist()) == ([1], [1])


def test_an_anchor_whose_centre_is_outside_learns_nothing():
    anchors, cells = grid(((1, 3),), (8,))
    assert len(assign(anchors, cells, torch.tensor([[12.0, -4.0, 13.0, 3.4]])).cells) == 0
    assert len(assign(anchors, cells, torch.zeros(0, 4)).cells) == 0


def test_centerness_by_hand():
    anchor = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2, 1)
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0], [4.0, 3.0, 14.0, 9.0]])
    torch.testing.assert_close(centerness(anchor, box), torch.tensor([1.0, math.sqrt((1 / 9) * (2 / 4))]))


def one_positive() -> tuple[GlipOutput, Target]:
    """Three anchors, three tokens (the last is padding), one box exactly on the middle anchor."""
    anchors, cells = grid(((1, 3),), (8,))
    size = (12, 32)
    # [4, -4, 19, 11] with the last pixel inside is 4 .. 20 across and -4 .. 12 down.
    box = torch.tensor([[12 / 32, 4 / 12, 16 / 32, 16 / 12]])
    maps = torch.zeros(2, 256, dtype=torch.bool)
    maps[0, 0], maps[1, 1] = True, True
    target = Target(box, torch.tensor([1]), maps, torch.ones(1))
    logits = torch.zeros(1, 3, 3)
    logits[..., 2] = float("-inf")
    return GlipOutput(
        logits.requires_grad_(),
        torch.zeros(1, 3, 4, requires_grad=True),
        torch.zeros(1, 3, requires_grad=True),
        anchors,
        tuple(cells),
        (size,),
    ), target


def test_losses_by_hand():
    output, target = one_positive()
    mask = torch.tensor([[True, True, False]])
    losses = anchor_losses(output, [target], mask, LossConfig())
    values = {name: value.item() for name, value in losses.items()}
    # At probability a half, a positive pays .25 * .25 * ln 2 and each of the five others .75 * .25 * ln 2.
    focal = (0.25 + 5 * 0.75) * 0.25 * math.log(2)
    assert values["focal"] == pytest.approx(focal, rel=1e-5)
    assert values["giou"] == pytest.approx(0.0, abs=1e-5)  # deltas of 0: the anchor, which is the box
    assert values["centerness"] == pytest.approx(math.log(2), rel=1e-5)
    sum(losses.values()).backward()
    assert output.logits.grad is not None
    assert output.logits.grad.isfinite().all()
    assert output.logits.grad[0, 1, 1] < 0 < output.logits.grad[0, 0, 1]


def test_box_loss_by_hand():
    """A prediction beside the box, of the same size: half of it overlaps."""
    output, target = one_positive()
    anchor = output.anchors_xyxy[1:2]
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1] = encode(anchor + torch.tensor([8.0, 0.0, 8.0, 0.0]), anchor)[0]
    losses = anchor_losses(replace(output, box_deltas=deltas), [target], torch.ones(1, 3) > 0, LossConfig())
    # Sides of 15: 7 of 15 columns are shared, and the hull is filled.
    giou = 7 / 23 - 0.0
    assert losses["giou"].item() == pytest.approx(2 * (1 - giou), rel=1e-5)


def test_a_step_in_parts_and_weights_of_boxes():
    output, target = one_positive()
    mask = torch.tensor([[True, True, False]])
    whole = anchor_losses(output, [target], mask, LossConfig())
    part = anchor_losses(output, [target], mask, LossConfig(), positives=4.0, total_centerness=4.0)
    for name, value in whole.items():
        assert part[name].item() == pytest.approx(value.item() / 4, abs=1e-7)
    nothing = replace(target, weights=torch.zeros(1))
    ignored = anchor_losses(output, [nothing], mask, LossConfig())
    assert ignored["centerness"].item() == ignored["giou"].item() == 0.0
    background = 4 * 0.75 * 0.25 * math.log(2)  # the two other anchors
    assert ignored["focal"].item() == pytest.approx(background, rel=1e-5)


def test_an_image_without_boxes_is_all_background():
    output, _ = one_positive()
    empty = Target(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(1, 256) > 0, torch.zeros(0)
    )
    losses = anchor_losses(output, [empty], torch.tensor([[True, True, False]]), LossConfig())
    assert losses["focal"].item() == pytest.approx(6 * 0.75 * 0.25 * math.log(2), rel=1e-5)
    assert losses["giou"].item() == losses["centerness"].item() == 0.0


def tiny_glip(seed: int = 0) -> Glip:
    torch.manual_seed(seed)
    bert = {"vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Glip(
        GlipConfig(
            backbone=SwinConfig(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=4),
            text_config=bert | {"intermediate_size": 32, "max_position_embeddings": 256},
            d_model=32,
            tower_layers=1,
            fusion_dim=32,
            fusion_heads=2,
            group_norm_groups=8,
            anchor_scale=4,
            image_size=(64, 64),
            default_threshold=0.3,
        )
    )


def test_the_shapes_of_levels_are_those_of_the_network():
    model = tiny_glip().eval()
    for height, width in ((64, 64), (70, 33), (200, 90)):
        with torch.no_grad():
            maps = model.encode_image(torch.zeros(1, 3, height, width)).maps
        assert tuple((x.shape[-2], x.shape[-1]) for x in maps) == model.level_shapes(height, width)


def test_a_tiny_glip_learns_pictures(coco_folder: Path, tokenizer: Any, tmp_path: Path):
    """Its loss falls, the boxes come, and the folder that it is saved to gives the same answers."""
    annotations = read_coco(coco_folder / "annotations.json", coco_folder)
    model = tiny_glip()
    config = TrainingConfig(
        epochs=90,
        batch_size=3,
        learning_rate=3e-3,
        frozen=("text_encoder.bert",),
        warmup_steps=5,
        drop_epochs=(70,),
        clip_norm=1.0,
    )
    reports: list[StepReport] = []
    dataset = ImageDataset(annotations, model.config)
    Trainer(model, tokenizer, dataset, config, tmp_path / "run", on_step=reports.append).fit()
    first, last = reports[0].losses, reports[-1].losses
    assert set(first) == {"focal", "giou", "centerness"}
    assert last["focal"] < first["focal"] / 3
    assert last["giou"] < first["giou"] / 2

    labels = ["red square", "blue square", "green dot"]
    found = Detector(model, tokenizer)(coco_folder / "2.png", labels=labels)
    assert set(found.labels) == {"red square", "blue square"}
    # The small one spans two cells of the finest level.
    for label, box, least in (("blue square", [24, 16, 60, 52], 0.6), ("red square", [2, 2, 18, 18], 0.35)):
        best = found.boxes_xyxy[found.labels.index(label)]
        overlap = pixel_iou(torch.as_tensor(best)[None].float(), torch.tensor([box]).float())
        assert float(overlap) > least, label

    save_pretrained(model, tmp_path / "version")
    loaded = load_model(tmp_path / "version")
    assert isinstance(loaded, Glip)
    assert loaded.config == model.config
    again = Detector(loaded, tokenizer)(coco_folder / "2.png", labels=labels)
    assert again.labels == found.labels
    torch.testing.assert_close(torch.as_tensor(again.boxes_xyxy), torch.as_tensor(found.boxes_xyxy))


def test_resumed_glip_training_ends_with_the_same_weights(coco_folder: Path, tokenizer: Any, tmp_path: Path):
    annotations = read_coco(coco_folder / "annotations.json", coco_folder)
    config = TrainingConfig(epochs=2, batch_size=2, accumulate=1, warmup_steps=2)
    whole, parts = tiny_glip(), tiny_glip()
    dataset = ImageDataset(annotations, whole.config)
    Trainer(whole, tokenizer, dataset, config, tmp_path / "whole").fit()
    stop = iter([False, True])
    first = Trainer(
        parts, tokenizer, dataset, config, tmp_path / "parts", should_stop=lambda: next(stop, True)
    ).fit()
    assert not first.finished
    parts = tiny_glip(seed=1)
    assert Trainer(parts, tokenizer, dataset, config, tmp_path / "parts").fit(resume=True).finished
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name


def test_targets_of_a_batch_add_up(coco_folder: Path, tokenizer: Any, tmp_path: Path):
    """What a step is divided by is known before the network runs, and the same however it is split."""
    annotations = read_coco(coco_folder / "annotations.json", coco_folder)
    model = tiny_glip()
    dataset = ImageDataset(annotations, model.config)
    totals = []
    for size, accumulate in ((3, 1), (1, 3)):
        reports: list[StepReport] = []
        config = TrainingConfig(epochs=1, batch_size=size, accumulate=accumulate, warmup_steps=100)
        folder = tmp_path / f"{size}"
        Trainer(tiny_glip(), tokenizer, dataset, config, folder, on_step=reports.append).fit()
        totals.append(reports[0].losses)
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)
    anchors = anchors_xyxy(model.level_shapes(64, 64), model.config.strides, 4, torch.device("cpu"))
    cells = [height * width for height, width in model.level_shapes(64, 64)]
    target = Target(
        torch.tensor([[0.375, 0.375, 0.5, 0.5]]), torch.tensor([0]), torch.ones(1, 256) > 0, torch.ones(1)
    )
    one = anchor_targets(target, (64, 64), anchors, cells)
    assert len(one.weights) > 0
    assert one.boxes_xyxy[0].tolist() == [8, 8, 39, 39]
