"""The one path from an image and a prompt to labelled boxes; serving, evaluation and the command line all
take it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from PIL import Image
from torch import Tensor

from groundingml.inference.anchor_candidates import select_anchor_candidates
from groundingml.inference.assembly import MERGE_IOU, MOST_DETECTIONS, to_detections
from groundingml.inference.caching import LruCache
from groundingml.inference.detections import Detections
from groundingml.inference.devices import resolve_device, resolve_precision
from groundingml.inference.encoded_image import EncodedImage
from groundingml.inference.images import ImageSource, load_image, many_images
from groundingml.inference.labels import Labels, normalise_labels
from groundingml.inference.preprocessing import preprocess, resized_size
from groundingml.inference.prompts import PromptPlan, PromptPlanner, TextChunk, Tokenizer
from groundingml.inference.scoring import Candidates, select_candidates
from groundingml.inference.thresholds import Thresholds, read_label_thresholds
from groundingml.inference.tiling import MOST_BOXES, Tiling, as_tiling, merge_views
from groundingml.inference.uploads import Upload, Uploader, one_ahead
from groundingml.models.glip import Glip, GlipConfig, GlipOutput

if TYPE_CHECKING:
    from groundingml.inference.cuda_graphs import CudaGraphs
    from groundingml.models.grounding_dino.config import GroundingDinoConfig
    from groundingml.models.grounding_dino.network import GroundingDino
    from groundingml.models.grounding_dino.outputs import GroundingDinoOutput

logger = logging.getLogger(__name__)


class Detector:
    """Finds what a prompt names.

    >>> detector = Detector.from_pretrained("nano")
    >>> found = detector("photo.jpg", labels=["cat", "remote control"])
    >>> found.draw("photo.jpg").save("boxes.jpg")

    The image's features are computed once, however many labels there are; those of a prompt are kept and
    used again. May be called from several threads. A detector of weights that change (in training) needs
    ``clear_cache()``.

    Args:
        model: in any mode and place; it is put into eval mode and moved to ``device``.
        tokenizer: ``groundingml.models.load_tokenizer``'s.
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1".
        dtype: "auto" and "float32" compute in fp32, "float16" and "bfloat16" under autocast.
        checkpoint_digest: identifies the weights.
        name: what to call the detector, e.g. where its weights came from.
        label_thresholds: label name -> least score, used where a call gives none; the model's own otherwise.
        cuda_graphs: on a GPU, replay the network from CUDA graphs where image sizes come again (see
            `groundingml.inference.cuda_graphs`). Where that cannot be, it runs as it does without, and a
            warning in the log says why.
    """

    def __init__(
        self,
        model: GroundingDino | Glip,
        tokenizer: Tokenizer,
        *,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        checkpoint_digest: str = "",
        name: str = "custom",
        label_thresholds: Mapping[str, float] | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.device = resolve_device(device)
        self._low_precision = resolve_precision(dtype)
        self.model: GroundingDino | Glip = model.to(self.device).eval()
        self.config: GroundingDinoConfig | GlipConfig = model.config
        self.checkpoint_digest = checkpoint_digest
        self.name = name
        self.default_threshold: float = self.config.default_threshold
        self.thresholds = Thresholds(self.default_threshold, dict(label_thresholds or {}))
        most = self.config.max_detections if isinstance(self.config, GlipConfig) else MOST_DETECTIONS
        self._most = min(most, MOST_DETECTIONS)
        self._planner = PromptPlanner(tokenizer, self.config.max_text_len, self.config.delimiter_token_ids)
        self._plans: LruCache[PromptPlan] = LruCache(64)
        self._texts: LruCache[Any] = LruCache(128)
        self._upload = Uploader(self.device)
        self._graphs = self._make_graphs() if cuda_graphs else None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] = "nano",
        device: str | torch.device = "auto",
        dtype: str = "auto",
        config: GroundingDinoConfig | GlipConfig | dict[str, Any] | None = None,
        *,
        digest: bool = True,
        cuda_graphs: bool = False,
    ) -> Detector:
        """Load a model: "nano" (inside the package), a short name, a hub id, a folder or a file.

        ``digest=False`` leaves ``checkpoint_digest`` empty and saves reading the weights once more.

        Raises:
            What ``groundingml.models.load_model`` raises; ValueError for an unknown or missing device.
        """
        from groundingml.models import checkpoint_digest, load_model, load_tokenizer, model_folder

        place = resolve_device(
            device
        )  # before the weights are read: a wrong device should not cost a download
        source = source if isinstance(source, str) else Path(source)
        return cls(
            load_model(source, config),
            load_tokenizer(source),
            device=place,
            dtype=dtype,
            checkpoint_digest=checkpoint_digest(source) if digest else "",
            name=str(source),
            label_thresholds=read_label_thresholds(model_folder(source)),
            cuda_graphs=cuda_graphs,
        )

    def __repr__(self) -> str:
        return f"Detector({self.name!r}, device={str(self.device)!r}, digest={self.checkpoint_digest!r})"

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence too, of strings
        self,
        images: ImageSource,
        labels: Labels | None = None,
        caption: str | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        merge_iou: float = MERGE_IOU,
        tile: int | Tiling | None = None,
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        images: Sequence[ImageSource],
        labels: Labels | None = None,
        caption: str | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        merge_iou: float = MERGE_IOU,
        tile: int | Tiling | None = None,
    ) -> list[Detections]: ...

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        labels: Labels | None = None,
        caption: str | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        merge_iou: float = MERGE_IOU,
        tile: int | Tiling | None = None,
    ) -> Detections | list[Detections]:
        """Detections of one image, or a list of them for a sequence of images.

        At most 300 boxes an image (of GLIP 100; in tiles 3000), best first. One object may come under several
        labels, each by its own score; boxes of one label found by several of its prompts are merged where
        they overlap by ``merge_iou`` or more.

        Args:
            images: a path, encoded bytes, a PIL image, an array (H, W, 3) or a tensor (3, H, W), uint8 or
                floats in 0..1; or a sequence of these (also an array (B, H, W, 3) or a tensor (B, 3, H, W)).
            labels: names, or a mapping from names to prompts. Exactly one of ``labels`` and ``caption`` is
                needed.
            caption: an English sentence whose noun phrases are looked for; they become the labels.
            threshold: least score, in 0..1; by default the model's, which may differ by label (`thresholds`).
                A label's own threshold takes precedence.
            batch_size: images of equal size computed together; by default 1 on a CPU, where more does not
                pay, and 8 on a GPU.
            merge_iou: overlap, in 0..1, from which on boxes of one label are one object.
            tile: look at each image in tiles of so many pixels too, for what is small in it (see `Tiling`).

        Raises:
            ValueError: neither or both of labels and caption, no labels, a label that is too long, a
                threshold, merge_iou or tile out of range.
            ImageError: an image cannot be read, or has too many tiles.
        """
        plan = self.plan(labels, caption)
        thresholds = self._thresholds(plan, threshold)
        if batch_size is None:
            batch_size = 1 if self.device.type == "cpu" else 8
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        _check_merge_iou(merge_iou)
        many = many_images(images)
        if tile is not None:
            tiling = as_tiling(tile)
            loaded = (load_image(image) for image in ([images] if many is None else many))  # type: ignore[arg-type]
            tiled = [
                self._detect_in_tiles(image, tiling, plan, thresholds, batch_size, merge_iou)
                for image in loaded
            ]
            return tiled[0] if many is None else tiled
        if many is None:
            return self._detect_in(self.encode(images), plan, thresholds, merge_iou)  # type: ignore[arg-type]
        batches = [many[start : start + batch_size] for start in range(0, len(many), batch_size)]
        # On a CPU a thread that prepares the next batch would only take turns with the computation.
        prepare = map if self.device.type == "cpu" else one_ahead
        found: list[Detections] = []
        for batch in prepare(self._prepare_sources, batches):
            found += self._detect_by_size(batch, plan, thresholds, merge_iou)
        return found

    def encode(self, image: ImageSource) -> EncodedImage:
        """The part of the work that depends on the image alone, to ask one image several questions.

        Raises:
            ImageError: the image cannot be read.
        """
        loaded = load_image(image)
        return EncodedImage((loaded.height, loaded.width), self._encode(self._pixels([loaded])))

    def detect_encoded(
        self,
        image: EncodedImage,
        labels: Labels | None = None,
        caption: str | None = None,
        threshold: float | None = None,
        merge_iou: float = MERGE_IOU,
    ) -> Detections:
        """What ``detector(image, ...)`` returns, to the bit, of an image that this detector encoded before.

        Raises as a call of the detector does.
        """
        plan = self.plan(labels, caption)
        thresholds = self._thresholds(plan, threshold)
        _check_merge_iou(merge_iou)
        return self._detect_in(image, plan, thresholds, merge_iou)

    def plan(self, labels: Labels | None = None, caption: str | None = None) -> PromptPlan:
        """The token sequences that a question becomes; cached. Raises as a call of the detector does."""
        if (labels is None) == (caption is None):
            given = "neither" if labels is None else "both"
            raise ValueError(f"give either labels=[...] or caption='...', got {given}")
        if labels is not None:
            asked = tuple(normalise_labels(labels))
            return self._plans.get(asked, lambda: self._planner.plan_labels(asked))
        assert caption is not None
        if not isinstance(caption, str):
            raise ValueError(f"caption must be one string, got {caption!r}; for a list use labels")
        # Dense proposals score a block as a whole; the other networks read the sentence in one piece.
        plan = self._planner.plan_phrases if self.config.proposals == "dense" else self._planner.plan_caption
        return self._plans.get(caption, lambda: plan(caption))

    def clear_cache(self) -> None:
        """Forget what was made from the weights, for when they have changed."""
        self._texts.clear()
        if self._graphs is not None:
            self._graphs.clear()

    def _thresholds(self, plan: PromptPlan, threshold: float | None) -> Tensor:
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in 0..1, got {threshold}")
        general = self.thresholds if threshold is None else Thresholds(threshold)
        values = [
            general.of(label.name) if label.threshold is None else label.threshold for label in plan.asked
        ]
        # A box of a negative prompt matters when it is better than one of a label that it is for.
        values += [min(values[number] for number in numbers) for numbers in plan.negatives.values()]
        return torch.tensor(values, device=self.device)

    def _detect_by_size(
        self, batch: _Batch, plan: PromptPlan, thresholds: Tensor, merge_iou: float
    ) -> list[Detections]:
        candidates = self._candidates_by_size(batch, plan, thresholds)
        return [
            to_detections(one, size, plan, self._most, merge_iou)
            for one, size in zip(candidates, batch.sizes, strict=True)
        ]

    def _detect_in(
        self, image: EncodedImage, plan: PromptPlan, thresholds: Tensor, merge_iou: float
    ) -> Detections:
        (candidates,) = self._ground(image.features, 1, plan, thresholds)
        return to_detections(candidates, image.size, plan, self._most, merge_iou)

    def _detect_in_tiles(
        self,
        image: Image.Image,
        tiling: Tiling,
        plan: PromptPlan,
        thresholds: Tensor,
        batch_size: int,
        merge_iou: float,
    ) -> Detections:
        views = [(0, 0, *image.size), *tiling.tiles(*image.size)]
        if len(views) == 1:
            return self._detect_by_size(self._prepare([image]), plan, thresholds, merge_iou)[0]
        found: list[Candidates] = []
        for start in range(0, len(views), batch_size):
            batch = [image.crop(view) for view in views[start : start + batch_size]]
            found += self._candidates_by_size(self._prepare(batch), plan, thresholds)
        return to_detections(
            merge_views(views, found), (image.height, image.width), plan, MOST_BOXES, merge_iou
        )

    def _prepare_sources(self, images: Sequence[ImageSource]) -> _Batch:
        return self._prepare([load_image(image) for image in images])

    def _prepare(self, images: Sequence[Image.Image]) -> _Batch:
        """Pixels on their way to the device.

        Only images of equal size after the resize are computed together: padding changes what the network
        makes of an image (its group norms see the zeros), so that boxes would depend on the batch.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            size = resized_size(image.height, image.width, *self.config.image_size)
            groups.setdefault(size, []).append(place)
        parts = [(places, self._pixels([images[place] for place in places])) for places in groups.values()]
        return _Batch([(image.height, image.width) for image in images], parts)

    def _pixels(self, images: list[Image.Image]) -> Upload:
        config = self.config
        return self._upload(preprocess(images, config.image_size, config.image_mean, config.image_std))

    def _candidates_by_size(self, batch: _Batch, plan: PromptPlan, thresholds: Tensor) -> list[Candidates]:
        """Candidates in the order of the images."""
        found: dict[int, Candidates] = {}
        for places, pixels in batch.parts:
            results = self._ground(self._encode(pixels), len(places), plan, thresholds)
            found.update(zip(places, results, strict=True))
        return [found[place] for place in range(len(batch.sizes))]

    @torch.inference_mode()
    def _encode(self, pixels: Upload) -> Any:
        """The network's features of images of one size; only `_ground` looks into them."""
        pixels = pixels.wait()
        encode = self.model.encode_image if self._graphs is None else self._graphs.encode_image
        with self._precision():
            return encode(pixels.pixel_values, pixels.pixel_mask)

    @torch.inference_mode()
    def _ground(self, features: Any, count: int, plan: PromptPlan, thresholds: Tensor) -> list[Candidates]:
        """What the ``count`` images of ``features`` have of what is asked."""
        found: list[list[Candidates]] = [[] for _ in range(count)]
        ground = self.model.ground if self._graphs is None else self._graphs.ground
        with self._precision():
            for chunk in plan.chunks:
                text = self._encode_text(chunk)
                output = ground(features, text)  # one text serves all images
                for row, candidates in enumerate(found):
                    candidates.append(self._select(output, row, chunk, thresholds))
        return [Candidates.concatenate(candidates) for candidates in found]

    def _select(
        self, output: GroundingDinoOutput | GlipOutput, row: int, chunk: TextChunk, thresholds: Tensor
    ) -> Candidates:
        """What one image's row of the network's answer says: the one thing that depends on the family."""
        if isinstance(output, GlipOutput):
            assert isinstance(self.config, GlipConfig)
            return select_anchor_candidates(output, row, chunk, thresholds, self.config)
        return select_candidates(
            output.logits[row],
            output.boxes_cxcywh[row],
            chunk,
            thresholds,
            "mean" if self.config.score_aggregation == "mean" else "max",
            self._most,
        )

    def _encode_text(self, chunk: TextChunk) -> Any:
        def encode() -> Any:
            input_ids = torch.tensor([chunk.input_ids], device=self.device)
            return self.model.encode_text(input_ids, torch.ones_like(input_ids))

        return self._texts.get(chunk.input_ids, encode)

    def _make_graphs(self) -> CudaGraphs | None:
        from groundingml.inference.cuda_graphs import CudaGraphs

        if (reason := CudaGraphs.unsupported(self.model, self.device)) is not None:
            logger.warning("running without CUDA graphs: %s", reason)
            return None
        return CudaGraphs(self.model, self.device)  # type: ignore[arg-type]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._low_precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._low_precision)


@dataclass(frozen=True)
class _Batch:
    """Images ready to be computed: their (height, width), and for each size after the resize which of them
    have it and their pixels."""

    sizes: list[tuple[int, int]]
    parts: list[tuple[list[int], Upload]]


def _check_merge_iou(merge_iou: float) -> None:
    if not 0 <= merge_iou <= 1:
        raise ValueError(f"merge_iou must lie in 0..1, got {merge_iou}")
