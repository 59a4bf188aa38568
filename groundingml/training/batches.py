"""Samples -> batches: prompts drawn, images padded, boxes told in tokens, in a repeatable order."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from groundingml.training.dataset import Sample, TrainingSet
from groundingml.training.distributed import Processes
from groundingml.training.prompts import PromptSampler, TrainingPrompt
from groundingml.training.targets import Target


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs.

    pixel_values (B, 3, H, W), or None when ``maps``, the backbone's (B, C_l, H_l, W_l), stand for it;
    pixel_mask (B, H, W) bool, True where there is image; input_ids, attention_mask (B, T); targets: B;
    noise_seeds: B, for what is drawn about each image on the way.
    """

    pixel_values: Tensor | None
    maps: tuple[Tensor, ...] | None
    pixel_mask: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    targets: list[Target]
    noise_seeds: tuple[int, ...]

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self,
            pixel_values=None if self.pixel_values is None else self.pixel_values.to(device),
            maps=None if self.maps is None else tuple(m.to(device) for m in self.maps),
            pixel_mask=self.pixel_mask.to(device),
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            targets=[target.to(device) for target in self.targets],
        )


def collate(
    samples: Sequence[Sample],
    prompts: Sequence[TrainingPrompt],
    pad_token_id: int = 0,
    noise_seeds: Sequence[int] | None = None,
) -> Batch:
    """Pad images and prompts on the right and below; leave out boxes whose name did not fit the prompt."""
    length = max(len(prompt.input_ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_token_id)
    attention_mask = torch.zeros(len(prompts), length, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt.input_ids)] = torch.tensor(prompt.input_ids)
        attention_mask[row, : len(prompt.input_ids)] = 1

    height = max(sample.size[0] for sample in samples)
    width = max(sample.size[1] for sample in samples)
    pixel_mask = torch.zeros(len(samples), height, width, dtype=torch.bool)
    for row, sample in enumerate(samples):
        pixel_mask[row, : sample.size[0], : sample.size[1]] = True
    pixels = [sample.pixel_values for sample in samples if sample.pixel_values is not None]
    maps = [sample.maps for sample in samples if sample.maps is not None]
    if len(samples) not in (len(pixels), len(maps)) or (pixels and maps):
        raise ValueError("the samples of a batch must all have pixel values, or all have the backbone's maps")
    return Batch(
        pixel_values=_stack_padded(pixels) if pixels else None,
        maps=None
        if len(pixels) == len(samples)
        else tuple(_stack_padded(level) for level in zip(*maps, strict=True)),
        pixel_mask=pixel_mask,
        input_ids=input_ids,
        attention_mask=attention_mask,
        targets=[_target(sample, prompt) for sample, prompt in zip(samples, prompts, strict=True)],
        noise_seeds=tuple(range(len(samples)) if noise_seeds is None else noise_seeds),
    )


def epoch_steps(
    dataset: TrainingSet,
    prompts: PromptSampler,
    batch_size: int,
    accumulate: int,
    seed: int,
    epoch: int,
    first: int,
    workers: int = 0,
    processes: Processes | None = None,
) -> Iterator[list[Batch]]:
    """This process's batches for each optimiser step of one epoch, from step number ``first`` on.

    A step has ``batch_size * accumulate`` images for each process; the last may have fewer, and then a
    process perhaps none. Everything random (order, augmentation, prompt, noise) depends only on the seed,
    the epoch and the image, so an epoch can be entered in the middle, and neither the number of processes
    nor that of workers changes what is drawn.
    """
    processes = processes or Processes()
    order = list(range(len(dataset)))
    random.Random(f"{seed} order {epoch}").shuffle(order)
    per_step = batch_size * accumulate * processes.count
    steps = []
    for start in range(first * per_step, len(order), per_step):
        own = [
            (seed, epoch, index)
            for index in order[start : start + per_step][processes.rank :: processes.count]
        ]
        steps.append([own[i : i + batch_size] for i in range(0, len(own), batch_size)])
    loader: DataLoader[tuple[Sample, TrainingPrompt, int]] = DataLoader(
        _Drawn(dataset, prompts),
        batch_sampler=[numbers for step in steps for numbers in step],
        collate_fn=_Collate(prompts.pad_token_id),
        num_workers=workers,
        generator=torch.Generator(),  # else it would draw from the global state that a resumed run restores
    )
    batches = iter(loader)
    for step in steps:
        yield list(islice(batches, len(step)))


class _Drawn(Dataset[tuple[Sample, TrainingPrompt, int]]):
    """One sample with its prompt and a seed for its noise, drawn from (seed, epoch, index)."""

    def __init__(self, dataset: TrainingSet, prompts: PromptSampler) -> None:
        self.dataset = dataset
        self.prompts = prompts

    def __getitem__(self, number: tuple[int, int, int]) -> tuple[Sample, TrainingPrompt, int]:
        seed, epoch, index = number
        rng = random.Random(f"{seed} sample {epoch} {index}")
        sample = self.dataset.sample(index, rng)
        prompt = self.prompts.sample(sample.names, sample.absent, rng)
        return sample, prompt, rng.getrandbits(63)


class _Collate:
    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, drawn: Sequence[tuple[Sample, TrainingPrompt, int]]) -> Batch:
        samples, prompts, seeds = zip(*drawn, strict=True)
        return collate(samples, prompts, self.pad_token_id, seeds)


def _stack_padded(arrays: Sequence[Tensor]) -> Tensor:
    """(C, H, W) of different sizes -> (B, C, max H, max W), zeros on the right and below."""
    height, width = max(a.shape[1] for a in arrays), max(a.shape[2] for a in arrays)
    return torch.stack([F.pad(a, (0, width - a.shape[2], 0, height - a.shape[1])) for a in arrays])


def _target(sample: Sample, prompt: TrainingPrompt) -> Target:
    kept = [i for i, name in enumerate(sample.names) if name in prompt.phrases]
    return Target(
        boxes_cxcywh=sample.boxes_cxcywh[kept],
        phrase_ids=torch.tensor([prompt.phrases[sample.names[i]] for i in kept], dtype=torch.int64),
        phrase_maps=prompt.phrase_maps,
        weights=sample.weights[kept],
    )
