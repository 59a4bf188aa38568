"""Open-vocabulary detectors of the transformers library, which are not ours: OWL-ViT, OWLv2, OmDet-Turbo.

``hf:google/owlv2-base-patch16-ensemble`` or ``hf:folder``. Their networks and their image processing are
transformers' own and run as they are; nothing of them is trained or compiled here.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from groundingml.inference.devices import resolve_device, resolve_precision
from groundingml.inference.merging import box_iou
from groundingml.inference.phrase_detector import FoundPhrases, PhraseDetector
from groundingml.inference.prompts import PromptError
from groundingml.models.checkpoints.errors import CheckpointError, listed
from groundingml.models.checkpoints.hub import transformers_folder
from groundingml.models.checkpoints.weights import weight_files
from groundingml.models.load import digest_of_files

PREFIX = "hf:"

_OURS = {"grounding-dino", "mm-grounding-dino"}
_MOST_AT_ONCE = 1000  # phrases before the text encoder together


class TransformersDetector(PhraseDetector):
    """A detector of the transformers library behind the interface of ours.

    >>> detector = TransformersDetector.from_pretrained("google/owlv2-base-patch16-ensemble")
    """

    def __init__(
        self, family: Family, name: str, checkpoint_digest: str, device: torch.device, dtype: str
    ) -> None:
        super().__init__(name, checkpoint_digest, family.default_threshold, device)
        self._family = family
        self._low_precision = resolve_precision(dtype)

    @classmethod
    def from_pretrained(
        cls, source: str, device: str | torch.device = "auto", dtype: str = "auto", *, digest: bool = True
    ) -> TransformersDetector:
        """Load a hub id or a folder, with or without the prefix "hf:".

        Args:
            digest: read the weights once more to identify them (a helper process needs no digest).

        Raises:
            CheckpointError: nothing found, another kind of model, or files that transformers cannot read.
            ValueError: an unknown or missing device.
        """
        place = resolve_device(device)
        bare = source.removeprefix(PREFIX)
        folder = _folder(bare)
        family = _load_family(folder, bare)
        family.model.to(place).eval()
        identity = digest_of_files(weight_files(folder)) if digest else ""
        return cls(family, f"{PREFIX}{bare}", identity, place, dtype)

    def check_phrase(self, phrase: str) -> None:
        """Raises PromptError for a phrase of more tokens than the model reads."""
        count, most = self._family.count_tokens(phrase), self._family.most_tokens
        if count > most:
            raise PromptError(
                f"the prompt {phrase!r} has {count} tokens, {self.name} reads at most {most}; shorten it"
            )

    @torch.inference_mode()
    def find(self, image: Image.Image, phrases: Sequence[str], threshold: float) -> FoundPhrases:
        """See `PhraseDetector.find`."""
        precision: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._low_precision is not None:
            precision = torch.autocast(self.device.type, self._low_precision)
        with precision:
            return self._family.find(image, phrases, threshold, self.device)


def transformers_digest(source: str) -> str:
    """The digest of ``hf:...`` without loading it. Raises CheckpointError where it is not found."""
    return digest_of_files(weight_files(_folder(source.removeprefix(PREFIX))))


class Family(ABC):
    """One architecture: a model, its image processor, its tokenizer, and how to read its answer."""

    default_threshold: float

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any) -> None:
        self.model = model
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @property
    def most_tokens(self) -> int:
        """Of a phrase, the marks around it included."""
        return int(self.model.config.text_config.max_position_embeddings)

    def count_tokens(self, phrase: str) -> int:
        """Tokens of a phrase, the marks around it included."""
        return len(self.tokenizer(phrase, truncation=False, verbose=False)["input_ids"])

    @abstractmethod
    def find(
        self, image: Image.Image, phrases: Sequence[str], threshold: float, device: torch.device
    ) -> FoundPhrases:
        """Boxes on one image."""

    def encode(self, texts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Token ids and their mask, (N, most_tokens) each."""
        encoded = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.most_tokens,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        return {name: tensor.to(device) for name, tensor in encoded.items()}

    def pixels(self, image: Image.Image, device: torch.device) -> Tensor:
        """(1, 3, H, W)."""
        pixel_values: Tensor = self.image_processor(images=image, return_tensors="pt")["pixel_values"]
        return pixel_values.to(device)


class Owl(Family):
    """OWL-ViT (arXiv:2205.06230) and OWLv2 (arXiv:2306.09683): the best phrase of each image patch."""

    default_threshold = 0.1

    def find(
        self, image: Image.Image, phrases: Sequence[str], threshold: float, device: torch.device
    ) -> FoundPhrases:
        """Phrases do not see each other, so any number of them is one question; see `PhraseDetector.find`."""
        pixel_values = self.pixels(image, device)
        output: Any = None
        logits = []
        for start in range(0, len(phrases), _MOST_AT_ONCE):
            text = self.encode(phrases[start : start + _MOST_AT_ONCE], device)
            output = self.model(pixel_values=pixel_values, **text)
            logits.append(output.logits.float())
        output.logits = torch.cat(logits, dim=-1)
        output.pred_boxes = output.pred_boxes.float()
        found = self.image_processor.post_process_object_detection(
            output,
            threshold=threshold,
            target_sizes=torch.tensor([[image.height, image.width]], device=device),
        )[0]
        return FoundPhrases(found["boxes"], found["scores"], found["labels"])


class OmDetTurbo(Family):
    """OmDet-Turbo (arXiv:2403.06892): 900 queries, each scored for every phrase.

    The post-processing is that of transformers' processor, which can only be used beside torchvision: the
    best 900 pairs of query and phrase, then non-maximum suppression for each phrase.
    """

    default_threshold = 0.3
    SUPPRESSION_IOU = 0.5

    @property
    def most_tokens(self) -> int:
        return min(77, int(self.model.config.text_config.max_position_embeddings))

    def find(
        self, image: Image.Image, phrases: Sequence[str], threshold: float, device: torch.device
    ) -> FoundPhrases:
        """See `PhraseDetector.find`."""
        classes = self.encode(phrases, device)
        task = self.encode([f"Detect {', '.join(phrases)}."], device)
        output = self.model(
            pixel_values=self.pixels(image, device),
            classes_input_ids=classes["input_ids"],
            classes_attention_mask=classes["attention_mask"],
            tasks_input_ids=task["input_ids"],
            tasks_attention_mask=task["attention_mask"],
            classes_structure=torch.tensor([len(phrases)], device=device),
        )
        scores = output.decoder_class_logits[0].float().sigmoid()  # (Q, K)
        centre, size = output.decoder_coord_logits[0].float().chunk(2, dim=-1)
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
        boxes = boxes * boxes.new_tensor([image.width, image.height] * 2)
        best, flat = scores.flatten().topk(min(len(boxes), scores.numel()))
        best, flat = best[best > threshold], flat[best > threshold]
        queries, numbers = flat // scores.shape[1], flat % scores.shape[1]
        kept = suppress(boxes[queries], numbers, self.SUPPRESSION_IOU)
        return FoundPhrases(boxes[queries[kept]], best[kept], numbers[kept])


def suppress(boxes_xyxy: Tensor, classes: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression: which of N boxes (N, 4), the best first, have no better one of their class
    that overlaps them by more than ``iou``, (N,) bool."""
    rivals = ((box_iou(boxes_xyxy, boxes_xyxy) > iou) & (classes[:, None] == classes[None, :])).triu(1).cpu()
    alive = torch.ones(len(boxes_xyxy), dtype=torch.bool)
    for rank in range(len(alive)):
        if alive[rank]:
            alive &= ~rivals[rank]
    return alive.to(boxes_xyxy.device)


FAMILIES: dict[str, type[Family]] = {"owlvit": Owl, "owlv2": Owl, "omdet-turbo": OmDetTurbo}
"""transformers' ``model_type`` -> how it is read."""


def _folder(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    return transformers_folder(source)


def _load_family(folder: Path, source: str) -> Family:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForZeroShotObjectDetection,
        AutoTokenizer,
    )

    try:
        kind = AutoConfig.from_pretrained(folder).model_type
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source!r} is no model of transformers: {_first_line(error)}") from error
    if kind in _OURS:
        raise CheckpointError(
            f"{source!r} is a {kind}, which we have an implementation of: leave out {PREFIX!r}"
        )
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{source!r} is a {kind}; of transformers' open-vocabulary detectors {', '.join(FAMILIES)} are "
            "supported"
        )
    try:
        model, loading = AutoModelForZeroShotObjectDetection.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        family = FAMILIES[kind](
            model, AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        )
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        ImportError,
        SafetensorError,
        UnpicklingError,
    ) as error:
        raise CheckpointError(f"transformers cannot load {source!r}: {_first_line(error)}") from error
    if loading["missing_keys"]:  # which transformers would fill with random numbers
        raise CheckpointError(
            f"{source!r} lacks parameters of {kind}: {listed(sorted(loading['missing_keys']))}"
        )
    return family


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
