"""What is minimised, for a batch that may be a part of a larger one.

`SetObjective` is the family's own: queries matched to boxes. `DenseObjective` teaches names to a small
model's second head, at every cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from groundingml.models.grounding_dino import GroundingDino, ImageFeatures, TextFeatures
from groundingml.models.grounding_dino.dense_proposals import DenseProposals, phrase_vectors
from groundingml.models.nanodet import NanoDet
from groundingml.training.batches import Batch
from groundingml.training.boxes import cxcywh_to_xyxy
from groundingml.training.denoising import DenoisingConfig, make_denoising
from groundingml.training.dense_losses import DenseLossConfig, dense_losses
from groundingml.training.losses import LossConfig, grounding_losses
from groundingml.training.phrase_cache import PhraseCache
from groundingml.training.step_counts import StepCounts


class Objective(Protocol):
    """Losses by name; their sum over all batches of a step is what the step minimises."""

    def counts(self, batch: Batch) -> tuple[float, float]:
        """The batch's part of StepCounts' boxes and quality."""
        ...

    def losses(self, batch: Batch, step: StepCounts) -> dict[str, Tensor]: ...


class SetObjective:
    """The losses of MM-Grounding-DINO, on queries that are matched to boxes."""

    def __init__(
        self,
        model: GroundingDino,
        phrases: PhraseCache | None,
        losses: LossConfig,
        denoising: DenoisingConfig | None,
    ) -> None:
        self.model = model
        self.phrases = phrases
        self.config = losses
        self.denoising = denoising

    def counts(self, batch: Batch) -> tuple[float, float]:
        """Boxes that find a query."""
        most = self.model.config.num_queries
        return float(sum(min(len(target.boxes_cxcywh), most) for target in batch.targets)), 0.0

    def losses(self, batch: Batch, step: StepCounts) -> dict[str, Tensor]:
        """Weighted, each divided by the number of positives in the step (see ``grounding_losses``)."""
        image = self._encode_image(batch)
        text = _encode_text(self.model, self.phrases, batch)
        plan = None
        if self.denoising is not None:
            queries = min(self.model.config.num_queries, image.tokens.shape[1])
            noise = [torch.Generator().manual_seed(seed) for seed in batch.noise_seeds]
            plan = make_denoising(batch.targets, text.tokens, queries, self.denoising, noise, step.largest)
        output = self.model.ground_training(image, text, None if plan is None else plan.queries)
        mask = batch.attention_mask.bool()
        return grounding_losses(output, batch.targets, mask, plan, self.config, step.boxes)

    def _encode_image(self, batch: Batch) -> ImageFeatures:
        if batch.maps is not None:
            # Even a mask that is all True says something here: maps may cover more than the image.
            return self.model.encode_maps(batch.maps, batch.pixel_mask)
        mask = None if bool(batch.pixel_mask.all()) else batch.pixel_mask
        assert batch.pixel_values is not None
        return self.model.encode_image(batch.pixel_values, mask)


class DenseObjective:
    """What teaches a model with dense proposals names of its own (see `taught_head`).

    Only the taught head is run, and the backbone where its maps are not cached: nothing else learns.
    """

    def __init__(self, model: GroundingDino, phrases: PhraseCache | None, losses: DenseLossConfig) -> None:
        if not isinstance(model.proposals, DenseProposals) or model.proposals.taught is None:
            raise ValueError("the model has no taught head: give it one with teach_names first")
        assert isinstance(model.backbone, NanoDet)
        self.model = model
        self.phrases = phrases
        self.config = losses
        self.backbone = model.backbone
        self.head = model.proposals.taught
        self.memory = model.proposals.names

    def counts(self, batch: Batch) -> tuple[float, float]:
        return float(sum(len(target.boxes_cxcywh) for target in batch.targets)), 0.0

    def losses(self, batch: Batch, step: StepCounts) -> dict[str, Tensor]:
        """Weighted, each divided by the number of boxes in the step."""
        stages: Sequence[Tensor]
        if batch.maps is not None:
            stages = batch.maps
        else:
            assert batch.pixel_values is not None
            stages = self.backbone.stage_maps(batch.pixel_values)
        output = self.head(stages)
        text = _encode_text(self.model, self.phrases, batch)
        vectors, _ = phrase_vectors(text.hidden, text.block_mask)
        is_taught, names, _ = self.head.meaning(vectors, self.memory)
        sizes = torch.stack([batch.pixel_mask[:, 0, :].sum(1), batch.pixel_mask[:, :, 0].sum(1)], dim=-1)
        sums: dict[str, Tensor] = {}
        for i, target in enumerate(batch.targets):
            first = target.phrase_maps[:, : names.shape[1]].float().argmax(dim=1)  # each phrase's first token
            if not bool(is_taught[i, first].all()):
                raise ValueError("a prompt asks for a name that the model was not taught")
            size = sizes[i].to(output.centres.dtype)
            losses = dense_losses(
                output,
                i,
                columns=names[i, first],
                goal_xyxy=cxcywh_to_xyxy(target.boxes_cxcywh) * size.repeat(2),
                phrase_ids=target.phrase_ids,
                weights=target.weights,
                size=size,
                config=self.config,
            )
            for name, value in losses.items():
                sums[name] = sums[name] + value if name in sums else value
        return {name: value / max(step.boxes, 1.0) for name, value in sums.items()}


def _encode_text(model: GroundingDino, phrases: PhraseCache | None, batch: Batch) -> TextFeatures:
    if phrases is not None:
        return phrases.encode(batch.input_ids, batch.attention_mask)
    return model.encode_text(batch.input_ids, batch.attention_mask)
