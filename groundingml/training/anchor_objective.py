"""What GLIP minimises, for a batch that may be a part of a larger one."""

from __future__ import annotations

from torch import Tensor

from groundingml.models.glip import Glip
from groundingml.models.glip.anchors import anchors_xyxy
from groundingml.training.anchor_losses import anchor_losses, anchor_targets
from groundingml.training.batches import Batch
from groundingml.training.losses import LossConfig
from groundingml.training.step_counts import StepCounts


class AnchorObjective:
    """The losses of GLIP, on anchors that are assigned to boxes."""

    def __init__(self, model: Glip, losses: LossConfig) -> None:
        self.model = model
        self.config = losses

    def counts(self, batch: Batch) -> tuple[float, float]:
        """Positive anchors, and the sum of their centerness. Which they are depends on the boxes alone."""
        shapes = self.model.level_shapes(*batch.pixel_mask.shape[-2:])
        config = self.model.config
        anchors = anchors_xyxy(shapes, config.strides, config.anchor_scale, batch.pixel_mask.device)
        cells = [height * width for height, width in shapes]
        learned = [
            anchor_targets(target, size, anchors, cells)
            for target, size in zip(batch.targets, _sizes(batch), strict=True)
        ]
        return (
            float(sum(len(one.weights) for one in learned)),
            float(sum(one.centerness.sum() for one in learned)),
        )

    def losses(self, batch: Batch, step: StepCounts) -> dict[str, Tensor]:
        """Weighted, each divided by what the whole step has of positives (see ``anchor_losses``)."""
        if batch.pixel_values is None:
            raise ValueError("GLIP is trained on images: a training set of cached maps does not do")
        output = self.model(batch.pixel_values, batch.pixel_mask, batch.input_ids, batch.attention_mask)
        mask = batch.attention_mask.bool()
        return anchor_losses(output, batch.targets, mask, self.config, step.boxes, step.quality)


def _sizes(batch: Batch) -> list[tuple[int, int]]:
    return [
        (int(height), int(width))
        for height, width in zip(
            batch.pixel_mask[:, :, 0].sum(1).tolist(), batch.pixel_mask[:, 0, :].sum(1).tolist(), strict=True
        )
    ]
