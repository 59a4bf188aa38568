"""GLIP (arXiv:2112.03857), read from top to bottom: Glip.forward is the whole network.

Image: Swin, then a feature pyramid of five levels. Text: BERT over the caption as it stands. A tower of
layers in which both look at each other (not in GLIP-T A) and the levels at their neighbours. Then each cell
of each level scores every token and places one box. There are no queries: a cell answers for its anchor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.bert import Bert
from groundingml.models.glip.anchors import anchors_xyxy
from groundingml.models.glip.config import GlipConfig
from groundingml.models.glip.fpn import FeaturePyramid
from groundingml.models.glip.head import GlipHead
from groundingml.models.glip.outputs import GlipImageFeatures, GlipOutput, GlipTextFeatures
from groundingml.models.glip.tower import TowerLayer
from groundingml.models.swin import SwinBackbone


class Glip(nn.Module):
    """GLIP-T (A, B, C), GLIP-T and GLIP-L; see `GlipConfig` for what tells them apart."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.text_config["hidden_size"]
        self.backbone = SwinBackbone(config.backbone)
        self.neck = FeaturePyramid(self.backbone.channels, config.d_model)
        self.text_encoder = CaptionEncoder(config)
        self.tower = nn.ModuleList(TowerLayer(config) for _ in range(config.tower_layers))
        self.head = GlipHead(config.d_model, hidden, len(config.strides))

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> GlipOutput:
        """Find what the captions name. See `encode_image`, `encode_text` and `ground` for the arguments."""
        image = self.encode_image(pixel_values, pixel_mask)
        text = self.encode_text(input_ids, attention_mask, token_type_ids)
        return self.ground(image, text)

    def encode_image(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> GlipImageFeatures:
        """Everything that depends on the images alone; run it once for any number of captions.

        Args:
            pixel_values: (B, 3, H, W) RGB, normalised with the config's mean and deviation, padded with zeros
                right and down, here further to a multiple of the config's divisor.
            pixel_mask: (B, H, W) bool, True where there is image; None when nothing is padded. It tells where
                boxes end; the network itself takes padding for image, as the original does.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                f"pixel_values must be (batch, 3, height, width), got shape {tuple(pixel_values.shape)}"
            )
        batch, _, height, width = pixel_values.shape
        sizes = ((height, width),) * batch
        if pixel_mask is not None:
            if tuple(pixel_mask.shape) != (batch, height, width):
                raise ValueError(
                    f"pixel_mask must be {(batch, height, width)} to fit pixel_values, "
                    f"got {tuple(pixel_mask.shape)}"
                )
            extents = torch.stack([pixel_mask[:, :, 0].sum(1), pixel_mask[:, 0, :].sum(1)], dim=1)
            sizes = tuple((int(h), int(w)) for h, w in extents.tolist())
        divisor = self.config.size_divisor
        padded = F.pad(pixel_values, (0, -width % divisor, 0, -height % divisor))
        return GlipImageFeatures(self.neck(self.backbone(padded)), sizes)

    def level_shapes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each level's cells for images on a canvas of that many pixels."""
        divisor = self.config.size_divisor
        size = (height + -height % divisor, width + -width % divisor)
        levels = len(self.config.strides) - 2
        shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in self.config.strides[:levels]]
        for _ in range(2):  # two strided convolutions
            shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
        return tuple(shapes)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> GlipTextFeatures:
        """Everything that depends on the captions alone; may be cached. All arguments are (B, T).

        The original pads every caption to 256 tokens, which none of the others sees: leave that out.
        """
        features: GlipTextFeatures = self.text_encoder(input_ids, attention_mask, token_type_ids)
        return features

    def ground(self, image: GlipImageFeatures, text: GlipTextFeatures) -> GlipOutput:
        """Find in each image what the caption of the same row names. One image or caption serves all rows.

        Raises:
            ValueError: as many images as captions are needed, or one of either.
        """
        image, text = _match_batches(image, text)
        maps, tokens = image.maps, text.hidden
        for layer in self.tower:
            maps, tokens = layer(maps, tokens, text.mask)
        logits, deltas, centerness = self.head(maps, tokens, text.mask)
        shapes = [(int(x.shape[-2]), int(x.shape[-1])) for x in maps]
        return GlipOutput(
            logits=logits,
            box_deltas=deltas,
            centerness_logits=centerness,
            anchors_xyxy=anchors_xyxy(shapes, self.config.strides, self.config.anchor_scale, deltas.device),
            level_cells=tuple(height * width for height, width in shapes),
            image_sizes=image.image_sizes,
        )


class CaptionEncoder(nn.Module):
    """BERT over a whole caption, every token seeing every other."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.max_text_len = config.max_text_len
        self.bert = Bert(config.text_config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> GlipTextFeatures:
        """input_ids, attention_mask (1 at real tokens), token_type_ids: (B, T).

        Raises:
            ValueError: more than `max_text_len` tokens (split the caption).
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be (batch, tokens), got shape {tuple(input_ids.shape)}")
        if input_ids.shape[1] > self.max_text_len:
            raise ValueError(
                f"the caption has {input_ids.shape[1]} tokens, the model takes at most {self.max_text_len}; "
                "split it"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask.bool()
        hidden = self.bert(
            input_ids=input_ids, attention_mask=mask[:, None, None, :], token_type_ids=token_type_ids
        ).last_hidden_state
        return GlipTextFeatures(hidden, mask)


def _match_batches(
    image: GlipImageFeatures, text: GlipTextFeatures
) -> tuple[GlipImageFeatures, GlipTextFeatures]:
    if image.batch_size == text.batch_size:
        return image, text
    if image.batch_size == 1:
        return image.expand(text.batch_size), text
    if text.batch_size == 1:
        return image, text.expand(image.batch_size)
    raise ValueError(
        f"{image.batch_size} images and {text.batch_size} captions: "
        "give as many of one as of the other, or only one"
    )
