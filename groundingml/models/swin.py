"""Swin Transformer (arXiv:2103.14030) as a detection backbone: any image size, a LayerNorm per output.

The image is cut into patches of 4x4 pixels; four stages of window attention follow, each halving the
resolution of the one before. Every second block shifts its windows by half a window, so that neighbours
exchange information. Tokens stay (B, H, W, C) throughout; only the returned maps are (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundingml.models.drop_path import DropPath
from groundingml.models.linear import Linear, feed_forward
from groundingml.models.tracing import is_tracing


@dataclass(frozen=True)
class SwinConfig:
    """Sizes of a Swin backbone; the defaults are Swin-T, returning strides 8, 16 and 32."""

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    patch_size: int = 4
    out_stages: tuple[int, ...] = (2, 3, 4)
    """Stages whose maps are returned, counted from 1 (stage 1 has stride 4)."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block in training; earlier blocks have proportionally less."""
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("depths", "num_heads", "out_stages"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"SwinConfig: {len(self.depths)} depths but {len(self.num_heads)} num_heads; "
                "give one of each per stage"
            )
        for stage, heads in enumerate(self.num_heads):
            if self.stage_channels(stage + 1) % heads:
                raise ValueError(
                    f"SwinConfig: stage {stage + 1} has {self.stage_channels(stage + 1)} channels, "
                    f"which {heads} heads do not divide"
                )
        valid = range(1, len(self.depths) + 1)
        if not self.out_stages or any(stage not in valid for stage in self.out_stages):
            raise ValueError(
                f"SwinConfig: out_stages must lie in 1..{len(self.depths)}, got {self.out_stages}"
            )

    def stage_channels(self, stage: int) -> int:
        """Channels of a stage, counted from 1."""
        return self.embed_dim * 2 ** (stage - 1)


class SwinBackbone(nn.Module):
    """Patches, the stages, and a LayerNorm for each returned map."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.embed_dim, kernel_size=patch, stride=patch)
        self.patch_norm = nn.LayerNorm(config.embed_dim)
        blocks = sum(config.depths)
        rates = [config.drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks)]
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            start = sum(config.depths[:stage])
            last = stage == len(config.depths) - 1
            self.stages.append(
                SwinStage(config, stage + 1, rates[start : start + depth], downsample=not last)
            )
        self.output_norms = nn.ModuleDict(
            {f"stage{stage}": nn.LayerNorm(config.stage_channels(stage)) for stage in config.out_stages}
        )
        self.apply(_initialise)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each returned map."""
        return tuple(self.config.stage_channels(stage) for stage in self.config.out_stages)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> maps (B, C_l, H_l, W_l) of `out_stages`, finest first, sizes rounded up."""
        patch = self.config.patch_size
        height, width = pixel_values.shape[-2:]
        pixel_values = F.pad(pixel_values, (0, -width % patch, 0, -height % patch))
        x = self.patch_norm(self.patch_embedding(pixel_values).permute(0, 2, 3, 1))
        position_index = relative_position_index(self.config.window_size, x.device)
        maps: list[Tensor] = []
        for number, stage in enumerate(self.stages, start=1):
            assert isinstance(stage, SwinStage)
            x = stage(x, position_index)
            if number in self.config.out_stages:
                maps.append(self.output_norms[f"stage{number}"](x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps


class SwinStage(nn.Module):
    """Blocks of one resolution. The backbone calls `downsample`, which leads to the next stage."""

    def __init__(
        self, config: SwinConfig, stage: int, drop_path_rates: Sequence[float], downsample: bool
    ) -> None:
        super().__init__()
        channels, heads = config.stage_channels(stage), config.num_heads[stage - 1]
        self.window = config.window_size
        self.blocks = nn.ModuleList(
            SwinBlock(config, channels, heads, shift=self.window // 2 if i % 2 else 0, drop_path_rate=rate)
            for i, rate in enumerate(drop_path_rates)
        )
        self.downsample = PatchMerging(channels) if downsample else None

    def forward(self, x: Tensor, position_index: Tensor) -> Tensor:
        """x (B, H, W, C), position_index (N, N) -> (B, H, W, C)."""
        shift_mask = (
            shifted_window_mask(x.shape[1], x.shape[2], self.window, x) if len(self.blocks) > 1 else None
        )
        for block in self.blocks:
            x = block(x, position_index, shift_mask if block.shift else None)
        return x


class SwinBlock(nn.Module):
    """Window attention and an MLP, both pre-norm residual branches."""

    def __init__(
        self, config: SwinConfig, channels: int, heads: int, shift: int, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.window = config.window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.attention = WindowAttention(channels, heads, self.window)
        self.norm2 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = Mlp(channels, int(config.mlp_ratio * channels))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, position_index: Tensor, shift_mask: Tensor | None) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        _, height, width, _ = x.shape
        # Padding comes after the norm, as in the original: padded tokens are zeros that windows do attend to.
        padded = F.pad(self.norm1(x), (0, 0, 0, -width % self.window, 0, -height % self.window))
        if self.shift:
            padded = torch.roll(padded, (-self.shift, -self.shift), dims=(1, 2))
        windows = self.attention(split_windows(padded, self.window), position_index, shift_mask)
        merged = join_windows(windows, self.window, padded.shape[1], padded.shape[2])
        if self.shift:
            merged = torch.roll(merged, (self.shift, self.shift), dims=(1, 2))
        x = x + self.drop_path(merged[:, :height, :width])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each relative position."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(channels, 3 * channels)
        self.projection = Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))

    def forward(self, windows: Tensor, position_index: Tensor, shift_mask: Tensor | None) -> Tensor:
        """windows (B*W, N, C); position_index (N, N); shift_mask (W, N, N) added to scores -> (B*W, N, C)."""
        count, tokens, channels = windows.shape
        bias = self.relative_position_bias_table[position_index].permute(2, 0, 1).to(windows.dtype)
        query, key, value = self.qkv(windows).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if shift_mask is None:
            mask = bias.unsqueeze(0)
        else:
            mask = shift_mask.unsqueeze(1) + bias
            if is_tracing() or count > mask.shape[0]:  # the windows of several images
                mask = mask.repeat(count // mask.shape[0], 1, 1, 1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.projection(out.transpose(1, 2).reshape(count, tokens, channels))


class Mlp(nn.Module):
    """Linear, GELU (exact), Linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.fc2 = Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return feed_forward(x, self.fc1, self.fc2, "gelu")


class PatchMerging(nn.Module):
    """Halve the resolution: concatenate each 2x2 neighbourhood, normalise, project 4C to 2C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # Order of the original: rows first (top left, bottom left, top right, bottom right).
        quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, dim=-1)))


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) with H, W multiples of `window` -> (B * windows, window * window, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def join_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `split_windows`: (B * windows, window * window, C) -> (B, H, W, C)."""
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def relative_position_index(window: int, device: torch.device) -> Tensor:
    """(N, N) row of the bias table for each pair of the N = window * window tokens."""
    axis = torch.arange(window, device=device)
    rows, columns = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    row_distance = rows[:, None] - rows[None, :] + window - 1
    column_distance = columns[:, None] - columns[None, :] + window - 1
    return row_distance * (2 * window - 1) + column_distance


def shifted_window_mask(height: int, width: int, window: int, like: Tensor) -> Tensor:
    """(windows, N, N) with -100 between tokens that only the cyclic shift made neighbours, else 0.

    `height` and `width` are those of the unpadded map; the mask covers it padded to whole windows.
    """
    shift = window // 2
    height, width = height + -height % window, width + -width % window
    rows, columns = (torch.arange(size, device=like.device) for size in (height, width))
    row_region = (rows >= height - window).long() + (rows >= height - shift).long()
    column_region = (columns >= width - window).long() + (columns >= width - shift).long()
    region = (row_region[:, None] * 3 + column_region[None, :]).view(1, height, width, 1)
    region = split_windows(region, window).squeeze(-1)
    different = region[:, None, :] != region[:, :, None]
    return torch.zeros(different.shape, dtype=like.dtype, device=like.device).masked_fill(different, -100.0)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
