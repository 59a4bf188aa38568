"""The training losses of MM-Grounding-DINO: token focal, L1 and GIoU, on every decoder layer, on the selected
encoder outputs and on the denoising queries (mmdet's GroundingDINOHead is the reference)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from groundingml.models.grounding_dino.outputs import TrainingOutput
from groundingml.training.boxes import cxcywh_to_xyxy, generalized_iou
from groundingml.training.denoising import DenoisingPlan
from groundingml.training.matcher import HungarianMatcher, Match
from groundingml.training.targets import Target


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses and of the matching costs; the defaults are the published ones."""

    focal: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    matcher: HungarianMatcher = field(default_factory=HungarianMatcher)


def sigmoid_focal_loss(logits: Tensor, positive: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., 2017) of each element, not reduced. logits, positive (0 or 1): same shape ->
    that shape."""
    p = logits.sigmoid()
    p_true = p * positive + (1 - p) * (1 - positive)
    weight = (alpha * positive + (1 - alpha) * (1 - positive)) * (1 - p_true).pow(gamma)
    return weight * F.binary_cross_entropy_with_logits(logits, positive, reduction="none")


def layer_losses(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    targets: list[Target],
    matches: list[Match],
    text_mask: Tensor,
    config: LossConfig,
    positives: float | None = None,
) -> dict[str, Tensor]:
    """The three weighted losses of one layer, given which query answers which box.

    logits (B, Q, 256); boxes_cxcywh (B, Q, 4); text_mask (B, 256) bool -> {"focal", "l1", "giou"}, scalars,
    float32. All three are summed and divided by ``positives``, by default the number of positive queries in
    the batch (at least 1). A box's weight scales all that its query pays: a weight of 0 neither attracts
    the query nor pushes it to the background.
    """
    positive = torch.zeros(logits.shape, dtype=torch.float32, device=logits.device)
    query_weight = torch.ones(logits.shape[:2], dtype=torch.float32, device=logits.device)
    for i, (target, match) in enumerate(zip(targets, matches, strict=True)):
        positive[i, match.queries] = target.positive_map[match.boxes].float()
        query_weight[i, match.queries] = target.weights[match.boxes].float()
    if positives is None:
        positives = sum(len(match.queries) for match in matches)
    positives = max(positives, 1)

    # Padded columns are -inf: they are replaced before the loss, since masking its result would still leave
    # NaN gradients.
    mask = text_mask[:, None, :]
    focal = sigmoid_focal_loss(logits.float().masked_fill(~mask, 0.0), positive, config.alpha, config.gamma)
    focal = (focal * mask * query_weight[..., None]).sum() / positives

    predicted = torch.cat([boxes_cxcywh[i, match.queries] for i, match in enumerate(matches)]).float()
    goal = torch.cat([t.boxes_cxcywh[m.boxes] for t, m in zip(targets, matches, strict=True)]).float()
    weight = torch.cat([t.weights[m.boxes] for t, m in zip(targets, matches, strict=True)]).float()
    l1 = ((predicted - goal).abs().sum(dim=-1) * weight).sum() / positives
    overlap = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(goal))
    giou = ((1 - overlap) * weight).sum() / positives
    return {"focal": config.focal * focal, "l1": config.l1 * l1, "giou": config.giou * giou}


def grounding_losses(
    output: TrainingOutput,
    targets: list[Target],
    text_mask: Tensor,
    denoising: DenoisingPlan | None = None,
    config: LossConfig | None = None,
    boxes: float | None = None,
) -> dict[str, Tensor]:
    """Every loss of one batch, weighted; their sum is what is minimised.

    output: what ``model.forward_training`` returned; targets: one for each image; text_mask (B, T) or (B,
    256) bool: the tokenizer's attention mask; denoising: the plan whose queries were put in front, if any;
    boxes: how many boxes the whole batch has that find a query, where this is a part of it.
    Returns scalars named "decoder_0.focal", "encoder.l1", "denoising_2.giou" and so on.
    """
    config = config or LossConfig()
    columns = output.decoder_logits.shape[-1]
    text_mask = F.pad(text_mask.bool(), (0, columns - text_mask.shape[1]))
    width = int(text_mask.any(dim=0).nonzero().max()) + 1 if text_mask.any() else columns
    text_mask = text_mask[:, :width]  # no work on columns that no prompt of the batch reaches
    targets = [Target(t.boxes_cxcywh, t.phrase_ids, t.phrase_maps[:, :width], t.weights) for t in targets]

    def matched(logits: Tensor, boxes_cxcywh: Tensor) -> dict[str, Tensor]:
        matches = config.matcher(logits, boxes_cxcywh, targets, text_mask)
        return layer_losses(logits, boxes_cxcywh, targets, matches, text_mask, config, boxes)

    losses: dict[str, Tensor] = {}
    extra = denoising.queries_per_image if denoising is not None else 0
    for layer, (logits, found) in enumerate(
        zip(output.decoder_logits[..., :width], output.decoder_boxes_cxcywh, strict=True)
    ):
        _add(losses, f"decoder_{layer}", matched(logits[:, extra:], found[:, extra:]))
        if denoising is not None and extra:
            restored = layer_losses(
                logits[:, :extra],
                found[:, :extra],
                targets,
                denoising.matches,
                text_mask,
                config,
                None if boxes is None else boxes * denoising.groups,
            )
            _add(losses, f"denoising_{layer}", restored)
    _add(losses, "encoder", matched(output.encoder_logits[..., :width], output.encoder_boxes_cxcywh))
    return losses


def _add(losses: dict[str, Tensor], prefix: str, terms: dict[str, Tensor]) -> None:
    losses.update({f"{prefix}.{name}": value for name, value in terms.items()})
