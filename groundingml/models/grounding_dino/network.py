"""One network: Grounding DINO (arXiv:2303.05499), MM-Grounding-DINO (2401.02361), LLMDet (2501.18954).

    image -> backbone -> projections  \\
                                        enhancer -> proposals -> top-k queries -> decoder -> logits and boxes
    prompt -> BERT -> projection      /
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.efficientvit import EfficientVit, EfficientVitConfig
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.decoder import Decoder
from groundingml.models.grounding_dino.edge_enhancer import EdgeEnhancer
from groundingml.models.grounding_dino.enhancer import FeatureEnhancer
from groundingml.models.grounding_dino.heads import PredictionHeads, pad_logits
from groundingml.models.grounding_dino.outputs import (
    DenoisingQueries,
    GroundingDinoOutput,
    ImageFeatures,
    Proposals,
    TextFeatures,
    TrainingOutput,
)
from groundingml.models.grounding_dino.positions import (
    grid_centres,
    grid_embedding,
    image_embedding,
    valid_ratio,
)
from groundingml.models.grounding_dino.proposals import (
    TwoStageProposals,
    gather_tokens,
    select_queries,
    selected_boxes,
)
from groundingml.models.grounding_dino.text import TextEncoder
from groundingml.models.linear import linear
from groundingml.models.nanodet import NanoDet
from groundingml.models.swin import SwinBackbone, SwinConfig
from groundingml.models.tracing import is_tracing


class GroundingDino(nn.Module):
    """The detector. `forward` is `ground(encode_image(...), encode_text(...))`."""

    def __init__(self, config: GroundingDinoConfig) -> None:
        super().__init__()
        self.config = config
        backbone_config = config.backbone
        self.backbone: SwinBackbone | NanoDet | EfficientVit
        if isinstance(backbone_config, SwinConfig):
            self.backbone = SwinBackbone(backbone_config)
        elif isinstance(backbone_config, EfficientVitConfig):
            self.backbone = EfficientVit(backbone_config)
        else:
            self.backbone = NanoDet(backbone_config)
        self.input_projections = nn.ModuleList(
            InputProjection(channels, config, kernel_size=1) for channels in self.backbone.channels
        )
        channels = self.backbone.channels[-1]
        for _ in range(config.num_levels - len(self.backbone.channels)):
            self.input_projections.append(InputProjection(channels, config, kernel_size=3))
            channels = config.d_model
        self.level_embedding = nn.Parameter(torch.randn(config.num_levels, config.d_model))
        self.text_encoder = TextEncoder(config)
        self.enhancer: FeatureEnhancer | EdgeEnhancer
        self.enhancer = EdgeEnhancer(config) if config.enhancer == "edge" else FeatureEnhancer(config)
        self.proposals: nn.Module
        if config.proposals == "two_stage":
            self.proposals = TwoStageProposals(config)
        else:
            from groundingml.models.grounding_dino.dense_proposals import DenseProposals

            self.proposals = DenseProposals(config)
        self.query_embedding: nn.Embedding | None = None
        if config.query_content == "learned":
            self.query_embedding = nn.Embedding(config.num_queries, config.d_model)
        self.decoder = Decoder(config)
        self.heads = PredictionHeads(config)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        topk_indices: Tensor | None = None,
    ) -> GroundingDinoOutput:
        """Find what the prompts name. See `encode_image`, `encode_text` and `ground` for the arguments."""
        image = self.encode_image(pixel_values, pixel_mask)
        text = self.encode_text(input_ids, attention_mask, token_type_ids)
        return self.ground(image, text, topk_indices)

    def encode_image(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> ImageFeatures:
        """Everything that depends on the images alone; run it once for any number of prompts.

        Args:
            pixel_values: (B, 3, H, W) normalised with the config's mean and deviation, padded right and down.
                How much padding there is matters a little: Swin and GroupNorm see it, as in the original.
            pixel_mask: (B, H, W) bool, True where there is image; None when nothing is padded.
        """
        _check_images(pixel_values, pixel_mask)
        if pixel_mask is not None:
            pixel_mask = pixel_mask.bool()
            if _is_all_true(pixel_mask):
                pixel_mask = None
        if pixel_mask is None and isinstance(self.backbone, NanoDet):
            # Its maps may cover more than the image, so the network has to know where the image ends.
            shape = (pixel_values.shape[0], *pixel_values.shape[2:])
            pixel_mask = torch.ones(shape, dtype=torch.bool, device=pixel_values.device)
        return self.encode_maps(self.backbone(pixel_values), pixel_mask)

    def encode_maps(self, maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> ImageFeatures:
        """`encode_image` from the backbone's maps (B, C_l, H_l, W_l), for training with cached ones."""
        if pixel_mask is not None and isinstance(self.backbone, NanoDet):
            pixel_mask = _pad_mask(pixel_mask, self.backbone.covered_size(maps))
        projected = [projection(x) for projection, x in zip(self.input_projections, maps, strict=False)]
        for projection in self.input_projections[len(maps) :]:
            # The first extra level comes from the backbone's last map, the others from the level before.
            projected.append(projection(maps[-1] if len(projected) == len(maps) else projected[-1]))

        shapes = tuple(_map_size(x) for x in projected)
        batch = maps[0].shape[0]
        masks = [self._level_mask(pixel_mask, shape, batch, maps[0].device) for shape in shapes]
        positions = [
            image_embedding(mask, self.config.d_model, self.config.position_temperature)
            if pixel_mask is not None
            else grid_embedding(shape, self.config.d_model, self.config.position_temperature, mask.device)
            for mask, shape in zip(masks, shapes, strict=True)
        ]
        positions = [x + embedding for x, embedding in zip(positions, self.level_embedding, strict=True)]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in projected], dim=1)
        valid_ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
        return ImageFeatures(
            tokens=tokens,
            positions=torch.cat(positions, dim=1).to(tokens.dtype).expand(batch, -1, -1),
            mask=None if pixel_mask is None else torch.cat([mask.flatten(1) for mask in masks], dim=1),
            spatial_shapes=shapes,
            valid_ratios=valid_ratios,
            centres=grid_centres(shapes, valid_ratios),
            sizes=self._pixel_sizes(maps, pixel_mask) if self.config.proposals == "dense" else None,
            feature_maps=tuple(maps) if self.config.proposals == "dense" else (),
        )

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> TextFeatures:
        """Everything that depends on the prompts alone; may be cached. All arguments are (B, T).

        End each prompt with ".": see `text` for why.
        """
        features: TextFeatures = self.text_encoder(input_ids, attention_mask, token_type_ids)
        return features

    def ground(
        self, image: ImageFeatures, text: TextFeatures, topk_indices: Tensor | None = None
    ) -> GroundingDinoOutput:
        """Find in each image what the prompt of the same row names. One image or prompt serves all rows.

        Args:
            image, text: what `encode_image` and `encode_text` returned.
            topk_indices: (B, Q) image tokens to take as queries instead of the best ones (for comparisons).
        """
        image, text = _match_batches(image, text)
        memory, text_tokens, proposals, topk_indices = self._propose(image, text, topk_indices)
        references = selected_boxes(proposals, topk_indices).sigmoid()
        queries = self._query_content(proposals, topk_indices)
        outputs, begun_with = self.decoder(
            queries, references, memory, image, text_tokens, text.mask, self.heads
        )
        last = self.config.decoder_layers - 1
        logits = self.heads.class_head(last)(outputs[last], text_tokens, text.mask)
        if proposals.residual_logits is not None:
            logits = logits + gather_tokens(proposals.residual_logits, topk_indices)
        return GroundingDinoOutput(
            logits=pad_logits(logits, self.config.max_text_len),
            boxes_cxcywh=self.heads.boxes(last, outputs[last], begun_with[last]),
            topk_indices=topk_indices,
        )

    def forward_training(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        denoising: DenoisingQueries | None = None,
        token_type_ids: Tensor | None = None,
    ) -> TrainingOutput:
        """The outputs of all layers, for the losses (as in mmdetection's MM-Grounding-DINO).

        References enter the decoder layers without gradient, but the boxes of a layer are computed from a
        reference that carries the gradient of the layer before ("look forward twice", arXiv:2203.03605).
        """
        image = self.encode_image(pixel_values, pixel_mask)
        text = self.encode_text(input_ids, attention_mask, token_type_ids)
        return self.ground_training(image, text, denoising)

    def ground_training(
        self, image: ImageFeatures, text: TextFeatures, denoising: DenoisingQueries | None = None
    ) -> TrainingOutput:
        """`forward_training` from features that were encoded before (frozen, cached)."""
        image, text = _match_batches(image, text)
        memory, text_tokens, proposals, topk_indices = self._propose(image, text, None)
        boxes_logit = selected_boxes(proposals, topk_indices)
        references = boxes_logit.detach().sigmoid()
        queries = self._query_content(proposals, topk_indices)
        residual = None
        if proposals.residual_logits is not None:
            residual = gather_tokens(proposals.residual_logits, topk_indices)
        self_attention_mask = None
        if denoising is not None:
            queries = torch.cat([denoising.content.to(queries.dtype), queries], dim=1)
            references = torch.cat(
                [denoising.reference_logits.to(references.dtype).sigmoid(), references], dim=1
            )
            self_attention_mask = ~denoising.self_attention_mask
            if residual is not None:
                # They come from no proposal; begin at a probability of 0.01, as a class head's bias would.
                prior = -math.log((1 - 0.01) / 0.01)
                residual = F.pad(residual, (0, 0, denoising.content.shape[1], 0), value=prior)
        outputs, begun_with = self.decoder(
            queries, references, memory, image, text_tokens, text.mask, self.heads, self_attention_mask
        )
        logits = [self.heads.class_head(i)(x, text_tokens, text.mask) for i, x in enumerate(outputs)]
        if residual is not None:
            logits = [layer_logits + residual for layer_logits in logits]
        boxes = [self.heads.boxes(i, x, r) for i, (x, r) in enumerate(zip(outputs, begun_with, strict=True))]
        columns = self.config.max_text_len
        return TrainingOutput(
            decoder_logits=pad_logits(torch.stack(logits), columns),
            decoder_boxes_cxcywh=torch.stack(boxes),
            encoder_logits=pad_logits(gather_tokens(proposals.logits, topk_indices), columns),
            encoder_boxes_cxcywh=boxes_logit.sigmoid(),
            topk_indices=topk_indices,
        )

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """In training, recompute the enhancer's and decoder's layers in the backward pass to save memory."""
        self.enhancer.gradient_checkpointing = enabled
        self.decoder.gradient_checkpointing = enabled

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `load_model` reads: Hugging Face's layout, or our own for a `nano` model."""
        # Imported here because checkpoints know the network, not the other way round.
        from groundingml.models.checkpoints.save import save_pretrained

        save_pretrained(self, folder)

    def _propose(
        self, image: ImageFeatures, text: TextFeatures, topk_indices: Tensor | None
    ) -> tuple[Tensor, Tensor, Proposals, Tensor]:
        """Enhance, propose, select: memory (B, S, C), text tokens (B, T, C), proposals, indices (B, Q)."""
        memory, text_tokens = self.enhancer(image, text)
        proposals: Proposals = self.proposals(memory, image.mask, image, text_tokens, text)
        if topk_indices is None:
            topk_indices = select_queries(proposals, self.config.num_queries)
        return memory, text_tokens, proposals, topk_indices

    def _query_content(self, proposals: Proposals, topk_indices: Tensor) -> Tensor:
        """(B, Q, C): learned by rank, or the selected tokens' (without gradient, as in Deformable-DETR)."""
        if self.query_embedding is None:
            return gather_tokens(proposals.features, topk_indices).detach()
        batch, count = topk_indices.shape
        return self.query_embedding.weight[:count].to(proposals.features.dtype).expand(batch, -1, -1)

    def _pixel_sizes(self, maps: Sequence[Tensor], pixel_mask: Tensor | None) -> Tensor:
        """(B, 2) width and height of the images without padding."""
        if pixel_mask is not None:
            sizes = torch.stack([pixel_mask[:, 0, :].sum(1), pixel_mask[:, :, 0].sum(1)], dim=-1)
            return sizes.to(maps[0].dtype)
        assert isinstance(self.backbone, NanoDet)
        height, width = self.backbone.covered_size(maps)
        # Made on the device: a tensor of both numbers would be copied there, and stall a GPU's queue.
        one = maps[0].new_ones(())
        return torch.stack([one * width, one * height]).expand(maps[0].shape[0], 2)

    @staticmethod
    def _level_mask(
        pixel_mask: Tensor | None, shape: tuple[int, int], batch: int, device: torch.device
    ) -> Tensor:
        """(B, H, W) pixels -> (B, h, w) of a level, by the nearest pixel."""
        if pixel_mask is None:
            return torch.ones((batch, *shape), dtype=torch.bool, device=device)
        return F.interpolate(pixel_mask[None].float(), size=shape)[0].bool()


class InputProjection(nn.Module):
    """A convolution to the network's width and GroupNorm; a 3x3 one has stride 2 and makes an extra level."""

    def __init__(self, channels: int, config: GroundingDinoConfig, kernel_size: int) -> None:
        super().__init__()
        stride, padding = (1, 0) if kernel_size == 1 else (2, 1)
        self.convolution = nn.Conv2d(channels, config.d_model, kernel_size, stride=stride, padding=padding)
        self.norm = nn.GroupNorm(config.group_norm_groups, config.d_model)
        nn.init.xavier_uniform_(self.convolution.weight)
        assert self.convolution.bias is not None
        nn.init.zeros_(self.convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, h, w)."""
        convolution = self.convolution
        is_rows = convolution.kernel_size == (1, 1) and x.is_contiguous(memory_format=torch.channels_last)
        if is_rows and not torch.is_grad_enabled():
            # A matrix multiplication; as a convolution, such a map would be copied into another order first.
            rows = linear(x.permute(0, 2, 3, 1), convolution.weight.flatten(1), convolution.bias)
            return self.norm(rows.permute(0, 3, 1, 2))
        return self.norm(convolution(x))


def _map_size(x: Tensor) -> tuple[int, int]:
    """(height, width); in a trace they stay values of the graph, so that they may differ in another run."""
    if is_tracing():
        return x.shape[-2], x.shape[-1]
    return int(x.shape[-2]), int(x.shape[-1])


def _is_all_true(mask: Tensor) -> bool:
    """Whether a mask can be left out. Not asked on a GPU, where the answer would stall the queue."""
    if mask.is_cuda or torch.compiler.is_compiling() or is_tracing():
        return False
    return bool(mask.all())


def _pad_mask(pixel_mask: Tensor, size: tuple[int, int]) -> Tensor | None:
    """A mask (B, H, W) enlarged on the right and below to a size (height, width); None when all is image."""
    height, width = pixel_mask.shape[-2:]
    padded = F.pad(pixel_mask, (0, size[1] - width, 0, size[0] - height))
    return None if _is_all_true(padded) else padded


def _check_images(pixel_values: Tensor, pixel_mask: Tensor | None) -> None:
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
        raise ValueError(
            f"pixel_values must be (batch, 3, height, width), got shape {tuple(pixel_values.shape)}"
        )
    expected = (pixel_values.shape[0], *pixel_values.shape[2:])
    if pixel_mask is not None and tuple(pixel_mask.shape) != tuple(expected):
        raise ValueError(
            f"pixel_mask must be {tuple(expected)} to fit pixel_values, got {tuple(pixel_mask.shape)}"
        )


def _match_batches(image: ImageFeatures, text: TextFeatures) -> tuple[ImageFeatures, TextFeatures]:
    if image.batch_size == text.batch_size:
        return image, text
    if image.batch_size == 1:
        return image.expand(text.batch_size), text
    if text.batch_size == 1:
        return image, text.expand(image.batch_size)
    raise ValueError(
        f"{image.batch_size} images and {text.batch_size} prompts: "
        "give as many of one as of the other, or only one"
    )
