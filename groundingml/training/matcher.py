"""Hungarian assignment of queries to boxes, with the costs of MM-Grounding-DINO."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from groundingml.training.boxes import cxcywh_to_xyxy, generalized_iou
from groundingml.training.targets import Target

_LOG_EPSILON = 1e-12


@dataclass(frozen=True)
class Match:
    """Which query answers which box in one image: queries (n,) and boxes (n,), int64, n = min(Q, N)."""

    queries: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class HungarianMatcher:
    """Assigns each box of an image to one query, so that the summed cost is the least possible.

    The class cost is mmdet's BinaryFocalLossCost: over the real text tokens, the focal loss the query would
    pay if the box were its own (its phrase's tokens positive, all others negative; binary, summed, not
    averaged over tokens). transformers' matcher differs: there a phrase's tokens are averaged and the other
    tokens do not count.
    """

    focal_cost: float = 2.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes_cxcywh: Tensor, target: Target, text_mask: Tensor) -> Tensor:
        """The cost of each (query, box) of one image.

        logits (Q, 256); boxes_cxcywh (Q, 4); text_mask (256,) bool, True on the prompt's real tokens -> (Q,
        N) float32.
        """
        logits = logits[:, text_mask].float()
        positive = target.positive_map[:, text_mask].float()
        p = logits.sigmoid()
        if_positive = -self.alpha * (1 - p).pow(self.gamma) * (p + _LOG_EPSILON).log()
        if_negative = -(1 - self.alpha) * p.pow(self.gamma) * (1 - p + _LOG_EPSILON).log()
        focal = if_positive @ positive.T + if_negative @ (1 - positive).T

        boxes = boxes_cxcywh.float()
        goal = target.boxes_cxcywh.float()
        l1 = torch.cdist(boxes, goal, p=1)
        giou = generalized_iou(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(goal)[None])
        return self.focal_cost * focal + self.l1_cost * l1 - self.giou_cost * giou

    @torch.no_grad()
    def __call__(
        self, logits: Tensor, boxes_cxcywh: Tensor, targets: list[Target], text_mask: Tensor
    ) -> list[Match]:
        """Match each image of a batch.

        logits (B, Q, 256), -inf past the text; boxes_cxcywh (B, Q, 4); text_mask (B, 256) bool -> one Match
        an image.
        Raises FloatingPointError when the costs are not finite: a diverged model must not be matched
        silently.
        """
        matches = []
        for i, target in enumerate(targets):
            cost = self.cost(logits[i], boxes_cxcywh[i], target, text_mask[i]).cpu()
            if not torch.isfinite(cost).all():
                raise FloatingPointError(
                    "the model's outputs are not finite, so its queries cannot be matched to boxes: "
                    "training has diverged. Lower the learning rate, or resume from the last good checkpoint."
                )
            queries, boxes = linear_sum_assignment(cost.numpy())
            matches.append(
                Match(
                    torch.as_tensor(queries, dtype=torch.int64, device=logits.device),
                    torch.as_tensor(boxes, dtype=torch.int64, device=logits.device),
                )
            )
        return matches
