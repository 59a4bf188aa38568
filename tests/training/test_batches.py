"""Batches: padding, targets in tokens, and an order that does not depend on where one begins."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from groundingml.models.grounding_dino import GroundingDino
from groundingml.training import Augmentation, CachedBackbone, ImageDataset, View, read_coco
from groundingml.training.batches import Batch, collate, epoch_steps
from groundingml.training.distributed import Processes
from groundingml.training.prompts import PromptConfig, PromptSampler


@pytest.fixture
def dataset(coco_folder: Path, model: GroundingDino) -> ImageDataset:
    return ImageDataset(
        read_coco(coco_folder / "annotations.json", coco_folder),
        model.config,
        Augmentation(shortest_sides=(48, 64)),
    )


@pytest.fixture
def prompts(dataset: ImageDataset, model: GroundingDino, tokenizer: Any) -> PromptSampler:
    return PromptSampler(dataset.names, tokenizer, model.config, PromptConfig(all_negatives=1.0))


def test_images_and_prompts_are_padded_and_masked(dataset: ImageDataset, prompts: PromptSampler) -> None:
    samples = [dataset.look(0, View(shortest=48)), dataset.look(1, View())]
    drawn = [
        prompts.sample(["red square"], [], random.Random(0)),
        prompts.sample(["blue square", "red square"], ["green dot"], random.Random(0)),
    ]
    batch = collate(samples, drawn)
    assert batch.pixel_values is not None
    assert batch.pixel_values.shape == (2, 3, 64, 64)
    assert (batch.pixel_values[0, :, 48:] == 0).all()
    assert (batch.pixel_values[0, :, :, 48:] == 0).all()
    assert batch.pixel_mask[0].sum() == 48 * 48
    assert batch.pixel_mask[1].all()
    lengths = [len(prompt.input_ids) for prompt in drawn]
    assert batch.attention_mask.sum(dim=1).tolist() == lengths
    assert (batch.input_ids[0, lengths[0] :] == 0).all()


def test_each_box_points_at_the_tokens_of_its_name(
    dataset: ImageDataset, prompts: PromptSampler, tokenizer: Any
) -> None:
    sample = dataset.look(1, View())
    batch = collate([sample], [prompts.sample(sample.names, sample.absent, random.Random(3))])
    (target,) = batch.targets
    for name, tokens in zip(sample.names, target.positive_map, strict=True):
        positions = tokens.nonzero().flatten()
        assert tokenizer.decode(batch.input_ids[0, positions]) == name


def test_boxes_whose_name_did_not_fit_are_left_out(dataset: ImageDataset, prompts: PromptSampler) -> None:
    sample = dataset.look(1, View())
    (target,) = collate([sample], [prompts.sample(["red square"], [], random.Random(0))]).targets
    assert target.boxes_cxcywh.equal(sample.boxes_cxcywh[1:])


def test_cached_maps_and_pixels_do_not_mix(
    dataset: ImageDataset, prompts: PromptSampler, model: GroundingDino
) -> None:
    plain = dataset.look(0, View())
    cached = CachedBackbone(dataset, model).sample(1, random.Random(0))
    drawn = [prompts.sample(sample.names, sample.absent, random.Random(0)) for sample in (plain, cached)]
    with pytest.raises(ValueError, match="must all have"):
        collate([plain, cached], drawn)


def same(one: Batch, other: Batch) -> bool:
    assert one.pixel_values is not None
    assert other.pixel_values is not None
    return (
        torch.equal(one.pixel_values, other.pixel_values)
        and torch.equal(one.input_ids, other.input_ids)
        and all(
            torch.equal(a.boxes_cxcywh, b.boxes_cxcywh)
            for a, b in zip(one.targets, other.targets, strict=True)
        )
    )


def whole_epoch(
    dataset: ImageDataset,
    prompts: PromptSampler,
    seed: int,
    epoch: int,
    batch_size: int = 1,
    workers: int = 0,
) -> list[Batch]:
    steps = epoch_steps(dataset, prompts, batch_size, 1, seed, epoch, first=0, workers=workers)
    return [batch for (batch,) in steps]


def test_an_epoch_can_be_entered_in_its_middle(dataset: ImageDataset, prompts: PromptSampler) -> None:
    whole = whole_epoch(dataset, prompts, seed=3, epoch=2)
    rest = [batch for (batch,) in epoch_steps(dataset, prompts, 1, 1, seed=3, epoch=2, first=1)]
    assert len(whole) == 3
    assert all(same(a, b) for a, b in zip(whole[1:], rest, strict=True))


def test_drawing_batches_leaves_the_global_random_state_alone(
    dataset: ImageDataset, prompts: PromptSampler
) -> None:
    before = torch.get_rng_state()
    list(epoch_steps(dataset, prompts, 2, 1, seed=3, epoch=0, first=0))
    assert torch.get_rng_state().equal(before)


def test_epochs_and_seeds_differ(dataset: ImageDataset, prompts: PromptSampler) -> None:
    def texts(seed: int, epoch: int) -> list[Any]:
        return [batch.input_ids.tolist() for batch in whole_epoch(dataset, prompts, seed, epoch)]

    assert len({str(texts(seed, epoch)) for seed in (0, 1) for epoch in range(5)}) > 5


def test_worker_processes_change_nothing(dataset: ImageDataset, prompts: PromptSampler) -> None:
    here = whole_epoch(dataset, prompts, seed=1, epoch=0, batch_size=2)
    there = whole_epoch(dataset, prompts, seed=1, epoch=0, batch_size=2, workers=1)
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def images_of(steps: list[list[Batch]]) -> list[list[tuple[int, ...]]]:
    """For each step, its images in the order of their noise seeds, which differ for every image."""
    return [sorted(seed for batch in step for seed in batch.noise_seeds) for step in steps]


def test_processes_and_accumulated_batches_share_the_same_steps(
    dataset: ImageDataset, prompts: PromptSampler
) -> None:
    """Two images a step, however they are split; the third image's step leaves the second process nothing."""
    whole = list(epoch_steps(dataset, prompts, 2, 1, seed=5, epoch=1, first=0))
    accumulated = list(epoch_steps(dataset, prompts, 1, 2, seed=5, epoch=1, first=0))
    shares = [
        list(epoch_steps(dataset, prompts, 1, 1, seed=5, epoch=1, first=0, processes=Processes(rank, 2)))
        for rank in (0, 1)
    ]
    assert [[len(batch.targets) for batch in step] for step in accumulated] == [[1, 1], [1]]
    assert shares[1][1] == []
    assert images_of(accumulated) == images_of(whole)
    assert images_of([a + b for a, b in zip(*shares, strict=True)]) == images_of(whole)
