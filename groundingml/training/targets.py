"""What one image should be answered with: boxes, and the text tokens that name each of them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The objects of one image, said in the tokens of its prompt.

    boxes_cxcywh: (N, 4) float, normalised to the unpadded image.
    phrase_ids: (N,) int64, which phrase of the prompt names each box.
    phrase_maps: (K, 256) bool, the tokens of each of the prompt's K phrases, also of those with no box here.
    weights: (N,) float, how much each box counts (1: an ordinary box; a teacher's confidence for
    pseudo-labels).
    """

    boxes_cxcywh: Tensor
    phrase_ids: Tensor
    phrase_maps: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        n = len(self.boxes_cxcywh)
        if self.boxes_cxcywh.shape != (n, 4) or self.phrase_ids.shape != (n,) or self.weights.shape != (n,):
            raise ValueError(
                "a target needs boxes (N, 4), phrase ids (N,) and weights (N,), got "
                f"{self.boxes_cxcywh.shape}, {self.phrase_ids.shape} and {self.weights.shape}"
            )
        if self.phrase_maps.ndim != 2 or self.phrase_maps.dtype != torch.bool:
            raise ValueError(
                "phrase_maps must be bool (K, tokens), got "
                f"{self.phrase_maps.dtype} {tuple(self.phrase_maps.shape)}"
            )
        if n and int(self.phrase_ids.max()) >= len(self.phrase_maps):
            raise ValueError(
                f"a box names phrase {int(self.phrase_ids.max())} of a prompt with {len(self.phrase_maps)}"
            )

    @property
    def positive_map(self) -> Tensor:
        """(N, 256) bool: the tokens that name each box (binary: every token of the phrase counts fully)."""
        return self.phrase_maps[self.phrase_ids]

    def to(self, device: torch.device) -> "Target":
        return Target(
            self.boxes_cxcywh.to(device),
            self.phrase_ids.to(device),
            self.phrase_maps.to(device),
            self.weights.to(device),
        )
