"""Contrastive denoising queries (DINO, arXiv 2203.03605): noisy copies of the true boxes that the decoder
must restore.

They follow mmdet's CdnQueryGenerator but for one thing: what a query's content is. There it is a learned
embedding of the phrase's place in the prompt, kept for training only. Here it is the projected text feature
of the phrase, averaged over its tokens and scaled to unit variance (the scale at which learned queries
begin). That holds for any vocabulary, needs no parameter that inference would then drop, and every checkpoint
format can be trained with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from groundingml.models.grounding_dino.outputs import DenoisingQueries
from groundingml.training.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from groundingml.training.matcher import Match
from groundingml.training.targets import Target


@dataclass(frozen=True)
class DenoisingConfig:
    """queries: positives at most (as many negatives are added); the number of groups follows from the largest
    image.

    label_noise: half this fraction of the queries get the content of a random phrase of the prompt.
    box_noise: corners of positives move by up to half of it times the side, those of negatives by that to
    twice that.
    """

    queries: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0


@dataclass(frozen=True)
class DenoisingPlan:
    """The queries for the network, and the box that each of their positives must restore.

    matches: one an image, query index (among the N denoising queries) to box index. All other queries, the
    negatives and the padding of images with fewer boxes than the largest, are to be background, as in mmdet.
    """

    queries: DenoisingQueries
    matches: list[Match]
    groups: int

    @property
    def queries_per_image(self) -> int:
        return self.queries.content.shape[1]


def make_denoising(
    targets: list[Target],
    text_features: Tensor,
    matching_queries: int,
    config: DenoisingConfig,
    generators: Sequence[torch.Generator],
    largest: int | None = None,
) -> DenoisingPlan | None:
    """Build the denoising queries of a batch; None when no image has a box.

    text_features (B, T, C): the projected text features, before any fusion with the image; matching_queries:
    Q, the network's own queries. One group holds a positive, then a negative, for each of the M boxes of the
    largest image: N = groups * 2 * M.
    generators: one for each image, on the CPU, so that its noise depends neither on the device nor on the
    rest of the batch. largest: M where the batch is a part of a larger one; by default the batch's own.
    """
    if largest is None:
        largest = max((len(target.boxes_cxcywh) for target in targets), default=0)
    if largest == 0:
        return None
    groups = max(config.queries // largest, 1)
    device = text_features.device
    contents, references, matches = [], [], []
    for target, features, generator in zip(targets, text_features, generators, strict=True):
        count = len(target.boxes_cxcywh)
        boxes = _noisy_boxes(target.boxes_cxcywh.cpu(), groups, config.box_noise, generator).to(device)
        phrases = _noisy_phrases(target, groups, config.label_noise, generator).to(device)
        content = _phrase_content(target.phrase_maps.to(device), features)[phrases]  # (groups, 2, n, C)
        pad = largest - count
        contents.append(F.pad(content, (0, 0, 0, pad)).flatten(0, 2))
        # Padding refers to the whole image's middle: inverse-sigmoid 0 is a half.
        references.append(F.pad(inverse_sigmoid(boxes), (0, 0, 0, pad)).flatten(0, 2))
        slots = torch.arange(groups)[:, None] * 2 * largest + torch.arange(count)
        matches.append(Match(slots.flatten().to(device), torch.arange(count).repeat(groups).to(device)))

    total = groups * 2 * largest
    group_of = torch.arange(total, device=device) // (2 * largest)
    mask = torch.zeros(total + matching_queries, total + matching_queries, dtype=torch.bool, device=device)
    mask[:total, :total] = group_of[:, None] != group_of[None, :]
    mask[total:, :total] = True  # the network's own queries must not see the answers
    queries = DenoisingQueries(
        content=torch.stack(contents), reference_logits=torch.stack(references), self_attention_mask=mask
    )
    return DenoisingPlan(queries=queries, matches=matches, groups=groups)


def _noisy_boxes(boxes_cxcywh: Tensor, groups: int, noise: float, generator: torch.Generator) -> Tensor:
    """(n, 4) -> (groups, 2, n, 4) cxcywh: [:, 0] positives, [:, 1] negatives, each corner moved, kept inside
    the image."""
    corners = cxcywh_to_xyxy(boxes_cxcywh)
    shape = (groups, 2, *corners.shape)
    amount = torch.rand(shape, generator=generator)
    amount[:, 1] += 1.0  # positives move by [0, 1) half sides, negatives by [1, 2)
    sign = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0
    sides = boxes_cxcywh[:, 2:].repeat(1, 2)
    moved = corners + sign * amount * sides * noise / 2
    return xyxy_to_cxcywh(moved.clamp(0.0, 1.0))


def _noisy_phrases(target: Target, groups: int, noise: float, generator: torch.Generator) -> Tensor:
    """-> (groups, 2, n) int64: each box's phrase, some replaced by a random phrase of the prompt."""
    shape = (groups, 2, len(target.phrase_ids))
    replaced = torch.rand(shape, generator=generator) < noise * 0.5
    random_phrase = torch.randint(0, max(len(target.phrase_maps), 1), shape, generator=generator)
    return torch.where(replaced, random_phrase, target.phrase_ids.cpu().expand(shape))


def _phrase_content(phrase_maps: Tensor, features: Tensor) -> Tensor:
    """phrase_maps (K, 256) bool, features (T, C) -> (K, C): mean over each phrase's tokens, then unit
    variance."""
    weights = phrase_maps[:, : features.shape[0]].to(features.dtype)
    mean = weights @ features / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return F.layer_norm(mean, (features.shape[1],))
