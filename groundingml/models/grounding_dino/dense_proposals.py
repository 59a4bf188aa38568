"""Proposals of a dense detector whose classes are text: what gives a small model something to begin with.

Where two-stage proposals learn boxes and text alignment from nothing, these read the maps of a backbone that
was trained as a detector (NanoDet) and keep its head. A phrase is tied to the detector's classes by the
names that they are known under: `recipes/nano` puts the vectors of these names, as the text encoder gives
them, into a memory. What the enhancer and the decoder learn is added to these logits and boxes, beginning
with zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.heads import BoxHead, ClassHead
from groundingml.models.grounding_dino.outputs import ImageFeatures, Proposals, TextFeatures
from groundingml.models.grounding_dino.taught_head import TaughtHead
from groundingml.models.linear import Linear
from groundingml.models.nanodet import NanoDetConfig, NanoDetHead
from groundingml.models.tracing import at_most, is_tracing

# Finite stand-ins for "no": a logit that no sum of residuals lifts, and what a cell that is no peak loses.
_IMPOSSIBLE = -100.0
_NOT_A_PEAK = 10.0
# Of a phrase that no class answers to: low, but within reach of what the heads may learn to add.
_LEAST_PROBABILITY = 1e-3


class DenseProposals(nn.Module):
    """Text-aligned logits and boxes at every cell of a detector's maps; of neighbouring cells only the peak
    counts.

    The peak filter stands for non-maximum suppression: a label is kept at a cell where no cell of the 3x3
    around it in its level has a higher score for that label.

    Raises:
        ValueError: a config whose backbone is no NanoDet, or that adds levels to the backbone's.
    """

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        backbone = config.backbone
        if not isinstance(backbone, NanoDetConfig):
            raise ValueError(
                'proposals="dense" read a detector\'s maps: the backbone must be a NanoDetConfig'
            )
        if config.num_levels != len(backbone.strides):
            raise ValueError(
                f'proposals="dense" need num_levels={len(backbone.strides)}, the levels of the backbone; '
                f"got {config.num_levels}"
            )
        self.levels = config.num_levels
        self.detector = NanoDetHead(backbone)
        self.names = NameMemory(config.known_names, config.text_config["hidden_size"], backbone.num_classes)
        self.projection = Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.class_head = ClassHead(config)
        self.box_head = BoxHead(config.d_model)
        self.taught: TaughtHead | None = None
        if config.taught_names:
            self.taught = TaughtHead(backbone, len(config.taught_names), config.text_config["hidden_size"])

    def forward(
        self,
        memory: Tensor,
        memory_mask: Tensor | None,
        image: ImageFeatures,
        text: Tensor,
        text_features: TextFeatures,
    ) -> Proposals:
        """The arguments are those of `TwoStageProposals.forward`."""
        phrases, is_word = phrase_vectors(text_features.hidden, text_features.block_mask)
        maps = image.feature_maps[: self.levels]
        known = self.detector.class_logits(maps).sigmoid()  # (B, S, classes)
        scores = nearly_highest(known, self.names(phrases))
        logits = torch.logit(_LEAST_PROBABILITY + (1 - 2 * _LEAST_PROBABILITY) * scores)
        features = self.norm(self.projection(memory))
        logits = logits + self.class_head(features, text, text_features.mask).masked_fill(
            ~text_features.mask.unsqueeze(1), 0.0
        )
        possible = (is_word & text_features.mask).unsqueeze(1)
        if memory_mask is not None:
            possible = possible & memory_mask.unsqueeze(-1)
        boxes_logit = self._boxes_logit(self.detector.boxes_xyxy(maps), image) + self.box_head(features)
        taught = None
        if self.taught is not None:
            is_taught, name, weight = self.taught.meaning(phrases, self.names)
            always = torch.compiler.is_compiling() or is_tracing()
            if always or bool((is_taught & is_word).any()):
                taught = self._ask_taught(image, possible & is_taught.unsqueeze(1), name, weight)
            possible = possible & ~is_taught.unsqueeze(1)
        logits = self._only_peaks(logits.masked_fill(~possible, _IMPOSSIBLE), image)
        if taught is not None:
            # Two rows for each cell: what the first head proposes there, and what the taught one does.
            logits = torch.cat([logits, taught[0]], dim=1)
            boxes_logit = torch.cat([boxes_logit, taught[1]], dim=1)
            features = torch.cat([features, features], dim=1)
        return Proposals(
            logits=logits.masked_fill(~text_features.mask.unsqueeze(1), float("-inf")),
            boxes_logit=boxes_logit,
            features=features,
            residual_logits=logits,
        )

    def _ask_taught(
        self, image: ImageFeatures, possible: Tensor, name: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The taught head's logits (B, S, T) and boxes (B, S, 4) before the sigmoid.

        possible: (B, 1 or S, T) bool; name, weight: (B, T) which taught name each token's phrase means.
        """
        assert self.taught is not None
        output = self.taught(image.feature_maps[self.levels :])
        column = name.unsqueeze(1).expand(-1, output.class_logits.shape[1], -1)
        scores = only_best_of_overlapping(output.class_logits.sigmoid(), output.boxes_xyxy)
        scores = scores.gather(2, column) * weight.unsqueeze(1)
        logits = torch.logit(scores, eps=1e-6).masked_fill(~possible, _IMPOSSIBLE)
        return self._only_peaks(logits, image), self._boxes_logit(output.boxes_xyxy, image)

    def _only_peaks(self, logits: Tensor, image: ImageFeatures) -> Tensor:
        """Logits (B, S, T), lowered by far where a neighbouring cell has a higher one."""
        return logits - _NOT_A_PEAK * (~peaks(logits.detach(), image.spatial_shapes)).to(logits.dtype)

    def _boxes_logit(self, boxes_xyxy: Tensor, image: ImageFeatures) -> Tensor:
        """Boxes (B, S, 4) in pixels, clipped to the image: cxcywh relative to it, before the sigmoid."""
        assert image.sizes is not None
        corners = boxes_xyxy / image.sizes.repeat(1, 2).unsqueeze(1)
        low, high = corners.clamp(0.0, 1.0).chunk(2, dim=-1)
        return torch.logit(torch.cat([(low + high) / 2, high - low], dim=-1), eps=1e-4)


def nearly_highest(probabilities: Tensor, affinities: Tensor) -> Tensor:
    """The highest of a phrase's affinity to a class times the class's probability, over all classes, made
    smooth.

    A norm of order 4 stands for the maximum, since it needs no (B, S, T, K) tensor: it is exact for a phrase
    that means one class, and does not add up the classes of one that means many.

    Args:
        probabilities: (B, S, K) of each class at each cell.
        affinities: (B, T, K) of each phrase to each class.

    Returns:
        (B, S, T) in 0..1.
    """
    powers = probabilities.pow(4) @ affinities.pow(4).transpose(1, 2)
    return powers.clamp(min=1e-24, max=1.0).pow(0.25)


def only_best_of_overlapping(scores: Tensor, boxes_xyxy: Tensor, iou: float = 0.6, most: int = 200) -> Tensor:
    """Scores (B, S, N) of N names, nearly 0 where a better box of the same name overlaps by more than
    ``iou``.

    Of each name the ``most`` best cells are looked at, the others are lowered too. A box that is itself
    suppressed still suppresses (the "fast" suppression of YOLACT, arXiv:1904.02689): no loop over boxes.
    """
    best, cells = scores.transpose(1, 2).topk(at_most(most, scores, 1), dim=2)  # (B, N, R)
    boxes = boxes_xyxy.unsqueeze(1).expand(-1, cells.shape[1], -1, -1)
    boxes = boxes.gather(2, cells.unsqueeze(-1).expand(-1, -1, -1, 4))
    low = torch.maximum(boxes[..., :, None, :2], boxes[..., None, :, :2])
    high = torch.minimum(boxes[..., :, None, 2:], boxes[..., None, :, 2:])
    intersection = (high - low).clamp(min=0.0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0.0).prod(-1)
    union = (area.unsqueeze(-1) + area.unsqueeze(-2) - intersection).clamp(min=1e-6)
    rivals = (intersection / union > iou).triu(diagonal=1)  # row: the better box
    kept = best.masked_fill(rivals.any(dim=-2), 0.0)
    return torch.zeros_like(scores).scatter(1, cells.transpose(1, 2), kept.transpose(1, 2))


class NameMemory(nn.Module):
    """Which of a detector's classes a phrase means, by its likeness to the names that are known.

    A phrase means the class of the most similar name, and to a lesser degree any class whose names are
    nearly as similar ("animal"); if no name is similar, or a name of something that the detector does not
    know is more similar, it means none of them. A linear map from phrase vectors to rows of the classifier
    would blur known names; this gives them exactly their class.
    """

    SHARPNESS = 0.05
    """Difference of cosine similarity over which an affinity falls by a factor e."""
    LEAST_SIMILARITY = 0.42
    """Cosine similarity of the best name at which a phrase is as well unknown as known."""

    centre: Tensor
    names: Tensor
    classes: Tensor

    def __init__(self, names: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("names", torch.zeros(names, width))
        self.register_buffer("classes", torch.full((names,), num_classes))

    def fill(self, vectors: Tensor, classes: Tensor) -> None:
        """Remember phrase vectors (N, H) of the classes (N,); class `num_classes` is "something else"."""
        self.centre.copy_(vectors[classes < self.num_classes].mean(dim=0))
        self.names.copy_(F.normalize(vectors - self.centre, dim=-1))
        self.classes.copy_(classes)

    def forward(self, phrases: Tensor) -> Tensor:
        """Phrase vectors (B, T, H) of length 1 -> affinities to the classes (B, T, num_classes), in 0..1."""
        similarity = self.centred(phrases) @ self.names.T
        of_class = similarity.new_full((*similarity.shape[:2], self.num_classes + 1), -1.0)
        of_class = of_class.scatter_reduce(2, self.classes.expand_as(similarity), similarity, "amax")
        best = of_class.amax(dim=-1, keepdim=True)
        relative = ((of_class[..., :-1] - best) / self.SHARPNESS).exp()
        return relative * self.confidence(best)

    def centred(self, phrases: Tensor) -> Tensor:
        """Phrase vectors (..., H) -> from the known names' centre, of length 1: the space of similarities."""
        return F.normalize(phrases - self.centre, dim=-1)

    def confidence(self, similarity: Tensor) -> Tensor:
        """How surely the nearest name is meant, 0..1, by its cosine similarity."""
        return ((similarity - self.LEAST_SIMILARITY) / self.SHARPNESS).sigmoid()


def phrase_vectors(hidden: Tensor, block_mask: Tensor) -> tuple[Tensor, Tensor]:
    """One vector for each phrase: the mean of its words' states, scaled to length 1.

    Args:
        hidden: (B, T, H) the text encoder's output.
        block_mask: (B, T, T) True where two tokens share a phrase; a phrase ends with its delimiter.

    Returns:
        (B, T, H) each token's phrase (zero at tokens that are no words), and (B, T) bool, True at words:
        tokens of a phrase other than its delimiter.
    """
    length = block_mask.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(diagonal=1)
    is_word = (block_mask & later).any(dim=-1)
    weights = (block_mask & is_word.unsqueeze(1) & is_word.unsqueeze(2)).to(hidden.dtype)
    return F.normalize(weights @ hidden, dim=-1), is_word


def peaks(logits: Tensor, spatial_shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Logits (B, S, T) -> bool, True where no cell of the 3x3 around it in its level has a higher logit.

    Each text token has its own peaks, so that what is found for a label does not depend on the others.
    """
    levels = []
    start = 0
    for height, width in spatial_shapes:
        level = logits[:, start : start + height * width]
        start += height * width
        grid = level.transpose(1, 2).unflatten(-1, (height, width))
        highest = F.max_pool2d(grid, kernel_size=3, stride=1, padding=1)
        levels.append((grid >= highest).flatten(2).transpose(1, 2))
    return torch.cat(levels, dim=1)
