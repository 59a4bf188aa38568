"""NanoDet-g: a 3.8 M parameter detector for 80 COCO classes, here a backbone that already knows objects.

Source: RangiLyu/nanodet, NanoDet-g ("g" for GPU: plain 3x3 convolutions, CSP stages, a parameter-free PAN
and one 3x3 + 1x1 head for each level; boxes by the distribution of Generalized Focal Loss,
arXiv:2006.04388). Batch normalisation is folded into the convolutions, and the first convolution takes RGB
(NanoDet itself takes BGR), so the input is normalised with ImageNet's mean and deviation like every other
backbone of this package.

As a backbone it gives the head's maps of strides 8, 16 and 32 tapped before the last 1x1 convolution.
That last convolution, `NanoDetHead`, differs for each level and turns a map into class logits and boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.linear import Linear


@dataclass(frozen=True)
class NanoDetConfig:
    """Sizes of NanoDet-g; the defaults are those of the published weights."""

    stem_channels: int = 32
    stage_channels: tuple[int, ...] = (64, 128, 256, 512)
    """Output channels of the four CSP stages, at strides 4, 8, 16 and 32."""
    stage_blocks: tuple[int, ...] = (1, 2, 2, 3)
    channels: int = 128
    """Channels of the feature pyramid, and so of every returned map."""
    num_classes: int = 80
    box_bins: int = 11
    """Each side's distance is the mean of a distribution over 0 .. box_bins - 1 strides."""
    strides: tuple[int, ...] = (8, 16, 32)
    return_stages: bool = False
    """Also return the stages' maps, from which a second head may read (see `taught_names`)."""


class ConvBlock(nn.Conv2d):
    """A 3x3 convolution with bias, then LeakyReLU(0.1)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel_size=3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, ceil(H / stride), ceil(W / stride))."""
        return F.leaky_relu(super().forward(x), 0.1)


class CspBlock(nn.Module):
    """Two convolutions of half the width whose outputs are concatenated, the later one first."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels_in, channels_out // 2)
        self.second = ConvBlock(channels_out // 2, channels_out // 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return torch.cat([self.second(first), first], dim=1)


class CspStage(nn.Module):
    """A (strided) convolution, CSP blocks, a convolution; the first one's output is concatenated to the
    last one's."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, stride: int) -> None:
        super().__init__()
        width = channels_out // 2
        self.enter = ConvBlock(channels_in, width, stride)
        self.blocks = nn.Sequential(*(CspBlock(width, width) for _ in range(blocks)))
        self.leave = ConvBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, ceil(H / stride), ceil(W / stride))."""
        entered = self.enter(x)
        return torch.cat([self.leave(self.blocks(entered)), entered], dim=1)


class NanoDet(nn.Module):
    """The backbone, pyramid and head convolutions of NanoDet-g."""

    def __init__(self, config: NanoDetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvBlock(3, config.stem_channels, stride=2)
        channels = (config.stem_channels, *config.stage_channels)
        self.stages = nn.ModuleList(
            CspStage(channels[i], channels[i + 1], blocks, stride=1 if i == 0 else 2)
            for i, blocks in enumerate(config.stage_blocks)
        )
        levels = len(config.strides)
        self.laterals = nn.ModuleList(
            nn.Conv2d(width, config.channels, kernel_size=1) for width in config.stage_channels[-levels:]
        )
        self.towers = nn.ModuleList(ConvBlock(config.channels, config.channels) for _ in range(levels))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each returned map."""
        return (self.config.channels,) * len(self.config.strides)

    def covered_size(self, maps: Sequence[Tensor]) -> tuple[int, int]:
        """(height, width) in pixels of what the maps cover: the images padded to a multiple of the last
        stride."""
        stride = self.config.strides[-1]
        return maps[-1].shape[-2] * stride, maps[-1].shape[-1] * stride

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> for each stride s a map (B, C, H' / s, W' / s), and the maps of
        `stage_maps` after them where the config says `return_stages`.

        H' and W' are H and W rounded up to a multiple of the last stride, so that all maps cover the same
        area.
        """
        stages = self.stage_maps(pixel_values)
        maps = pyramid(stages, self.laterals, self.towers)
        return maps + stages if self.config.return_stages else maps

    def stage_maps(self, pixel_values: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> for each stride s the map (B, C_s, H' / s, W' / s) of its CSP stage."""
        stride, (height, width) = self.config.strides[-1], pixel_values.shape[-2:]
        pixel_values = F.pad(pixel_values, (0, -width % stride, 0, -height % stride))
        x = F.max_pool2d(self.stem(pixel_values), kernel_size=3, stride=2, padding=1)
        outputs: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs[-len(self.laterals) :]


def pyramid(stages: Sequence[Tensor], laterals: nn.ModuleList, towers: nn.ModuleList) -> list[Tensor]:
    """The stages' maps (B, C_s, H_s, W_s) -> the head's maps (B, C, H_s, W_s): laterals, down, up, towers."""
    maps = [lateral(x) for lateral, x in zip(laterals, stages, strict=True)]
    for level in range(len(maps) - 1, 0, -1):
        maps[level - 1] = maps[level - 1] + _resize(maps[level], maps[level - 1])
    # The way up starts from the top-down maps, but the last level was not changed by it.
    for level in range(len(maps) - 1):
        maps[level + 1] = maps[level + 1] + _resize(maps[level], maps[level + 1])
    return [tower(x) for tower, x in zip(towers, maps, strict=True)]


class NanoDetHead(nn.Module):
    """NanoDet-g's last 1x1 convolutions, one for each level: class logits and a distribution for each side
    of a box."""

    def __init__(self, config: NanoDetConfig) -> None:
        super().__init__()
        self.config = config
        levels = len(config.strides)
        self.boxes = nn.ModuleList(Linear(config.channels, 4 * config.box_bins) for _ in range(levels))
        self.classes = nn.ModuleList(Linear(config.channels, config.num_classes) for _ in range(levels))

    def class_logits(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H_l, W_l) of all levels -> logits (B, S, num_classes) over the flattened levels."""
        return torch.cat([layer(_flatten(x)) for layer, x in zip(self.classes, maps, strict=True)], dim=1)

    def box_logits(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H_l, W_l) of all levels -> a distribution for each side, (B, S, 4 * bins) logits."""
        return torch.cat([layer(_flatten(x)) for layer, x in zip(self.boxes, maps, strict=True)], dim=1)

    def cells(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Centres (S, 2) as x, y and strides (S, 1) of all cells, in pixels of the network's input."""
        centres = [
            grid_centres(x.shape[-2], x.shape[-1], s, x)
            for x, s in zip(maps, self.config.strides, strict=True)
        ]
        strides = [torch.full_like(c[:, :1], s) for c, s in zip(centres, self.config.strides, strict=True)]
        return torch.cat(centres), torch.cat(strides)

    def boxes_xyxy(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H_l, W_l) of all levels -> boxes (B, S, 4) in pixels of the network's input, not
        clipped."""
        return self.decode(self.box_logits(maps), *self.cells(maps))

    def decode(self, box_logits: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
        """What `box_logits` and `cells` returned -> boxes (B, S, 4) xyxy in pixels, not clipped."""
        distances = expected_distances(box_logits, self.config.box_bins) * strides
        return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)


def expected_distances(logits: Tensor, bins: int) -> Tensor:
    """Logits (..., 4 * bins) -> the mean of each side's distribution, (..., 4) as left, top, right, bottom
    in strides."""
    distribution = logits.reshape(*logits.shape[:-1], 4, bins).softmax(dim=-1)
    # A matrix of one column and no vector, whose scaling OpenVINO would fold in wrongly.
    values = torch.arange(bins, dtype=logits.dtype, device=logits.device).unsqueeze(-1)
    return (distribution @ values).squeeze(-1)


def grid_centres(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """Centres of the cells of a map, (height * width, 2) as x, y in pixels, in the dtype and on the device
    of `like`."""
    x = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) * stride
    y = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) * stride
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def _flatten(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
