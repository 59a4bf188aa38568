"""EfficientViT-L (arXiv:2205.14756) as a detection backbone: convolutions, and attention at a linear cost.

A stem and four stages, each halving the resolution. The first two are fused inverted bottlenecks, the third
is of depthwise ones, and the last alternates multi-scale linear attention with those. Parameter names are
those of timm's `efficientvit_l*`, whose weights fit when their classifier ("head.*") is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-7
_FUSED: bool = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_reorder_convolution_weight"
)


HIDDEN_AT_ONCE = 1024
"""Channels of a bottleneck's hidden map that are computed at once in inference on a CPU: larger maps would be
fetched from the system and cleared for every layer, which takes longer than the arithmetic."""


@dataclass(frozen=True)
class EfficientVitConfig:
    """Sizes of an EfficientViT backbone; the defaults are EfficientViT-L1, returning strides 8, 16 and 32.

    widths, depths: of the stem, then of each stage. head_dim: channels of an attention head.
    out_stages: stages whose maps are returned, counted from 1 (stage 1 has stride 4).
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    depths: tuple[int, ...] = (1, 1, 1, 6, 6)
    head_dim: int = 32
    out_stages: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self) -> None:
        for name in ("widths", "depths", "out_stages"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        if len(self.widths) != 5 or len(self.depths) != 5:
            raise ValueError(
                "widths and depths are of a stem and four stages, "
                f"got {len(self.widths)} and {len(self.depths)}"
            )
        if not set(self.out_stages) <= {1, 2, 3, 4} or not self.out_stages:
            raise ValueError(f"out_stages must be among 1 to 4, got {self.out_stages}")
        if self.widths[4] % self.head_dim:
            raise ValueError(
                f"the last width, {self.widths[4]}, is not a multiple of head_dim={self.head_dim}"
            )


class EfficientVit(nn.Module):
    """The backbone: image -> one map for each of the config's `out_stages`."""

    def __init__(self, config: EfficientVitConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = tuple(config.widths[stage] for stage in config.out_stages)
        self.stem = Stem(config.widths[0], config.depths[0])
        self.stages = nn.Sequential(*(Stage(config, stage) for stage in range(1, 5)))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> (B, C_l, ceil(H / stride), ceil(W / stride)) of each output."""
        if pixel_values.device.type == "cpu":  # where convolutions are much faster so
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        x = self.stem(pixel_values)
        maps = []
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if number in self.config.out_stages:
                maps.append(x)
        return tuple(maps)


class ConvNorm(nn.Module):
    """A convolution, BatchNorm where asked for, and GELU (its tanh form) where asked for."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        norm: bool = True,
        gelu: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel_size, stride, padding, groups=groups, bias=bias
        )
        self.norm = nn.BatchNorm2d(channels_out, eps=NORM_EPS) if norm else nn.Identity()
        self.gelu = gelu
        self._kept: dict[tuple[int, int], tuple[object, tuple[Tensor, Tensor | None]]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, h, w)."""
        if self.gives_only_result(x):
            return self.fused(x, 0, self.conv.out_channels)
        x = self.norm(self.conv(x))
        return F.gelu(x, approximate="tanh") if self.gelu else x

    def gives_only_result(self, x: Tensor) -> bool:
        """Whether `fused` may stand for `forward`: inference in float32 on a CPU."""
        return (
            _FUSED
            and x.device.type == "cpu"
            and x.dtype == self.conv.weight.dtype == torch.float32
            and not self.training
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
        )

    def fused(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Output channels begin .. end in one pass over memory: norm folded in, GELU applied on the way."""
        conv = self.conv
        weight, bias = self._folded(begin, end)
        activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if self.gelu else ("none", [], "")
        if conv.kernel_size == (1, 1):  # a matrix multiplication, which oneDNN does faster under that name
            pixels = x.permute(0, 2, 3, 1).contiguous()
            out: Tensor = torch.ops.mkldnn._linear_pointwise(pixels, weight, bias, *activation)
            return out.permute(0, 3, 1, 2)
        groups = 1 if conv.groups == 1 else end - begin
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, conv.padding, conv.stride, conv.dilation, groups, *activation
        )
        return result

    def _folded(self, begin: int, end: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of output channels begin .. end with the norm folded in. They are kept until a
        parameter changes: folding reads and writes all weights, which takes as long as many a layer."""
        parts = [*self.conv.parameters(), *self.norm.parameters(), *self.norm.buffers()]
        if any(part.is_inference() for part in parts):  # whose changes nobody counts
            return self._fold(begin, end)
        state = tuple((part.data_ptr(), part._version) for part in parts)
        kept = self._kept.get((begin, end))
        if kept is None or kept[0] != state:
            kept = self._kept[begin, end] = (state, self._fold(begin, end))
        return kept[1]

    def _fold(self, begin: int, end: int) -> tuple[Tensor, Tensor | None]:
        conv = self.conv
        weight = conv.weight[begin:end]
        bias = None if conv.bias is None else conv.bias[begin:end]
        if isinstance(self.norm, nn.BatchNorm2d):
            mean, variance = self.norm.running_mean, self.norm.running_var
            assert mean is not None
            assert variance is not None
            scale = self.norm.weight[begin:end] * (variance[begin:end] + self.norm.eps).rsqrt()
            weight = weight * scale[:, None, None, None]
            shift = self.norm.bias[begin:end] - mean[begin:end] * scale
            bias = shift if bias is None else bias * scale + shift
        if conv.kernel_size == (1, 1):  # in the order in which oneDNN reads it
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1))
        return weight, bias

    def __getstate__(self) -> dict[str, Any]:
        # What is kept is oneDNN's, which can be neither copied nor stored.
        state: dict[str, Any] = {**super().__getstate__(), "_kept": {}}  # type: ignore[no-untyped-call]
        return state


class Residual(nn.Module):
    """What ``main`` adds to its input."""

    def __init__(self, main: nn.Module, shortcut: bool = True) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the shape of ``main``'s output."""
        change: Tensor = self.main(x)
        return change + x if self.shortcut else change


class ConvPair(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3, gelu=True)
        self.conv2 = ConvNorm(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        out: Tensor = self.conv2(self.conv1(x))
        return out


class FusedBottleneck(nn.Module):
    """Inverted bottleneck whose first convolution is 3x3 (FusedMBConv)."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int = 1) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.spatial_conv = ConvNorm(channels_in, hidden, 3, stride, gelu=True)
        self.point_conv = ConvNorm(hidden, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, h, w)."""
        out: Tensor = self.point_conv(self.spatial_conv(x))
        return out


class Bottleneck(nn.Module):
    """Inverted bottleneck with a depthwise convolution (MBConv), normed at its end only."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int = 1) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.inverted_conv = ConvNorm(channels_in, hidden, norm=False, gelu=True, bias=True)
        self.depth_conv = ConvNorm(hidden, hidden, 3, stride, hidden, norm=False, gelu=True, bias=True)
        self.point_conv = ConvNorm(hidden, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, h, w)."""
        expand, near = self.inverted_conv, self.depth_conv
        if expand.gives_only_result(x):
            count = expand.conv.out_channels
            parts = [(i, min(i + HIDDEN_AT_ONCE, count)) for i in range(0, count, HIDDEN_AT_ONCE)]
            hidden = [near.fused(expand.fused(x, *part), *part) for part in parts]
            x = torch.cat(hidden, dim=1) if len(hidden) > 1 else hidden[0]
        else:
            x = near(expand(x))
        out: Tensor = self.point_conv(x)
        return out


class LinearAttention(nn.Module):
    """ReLU attention, of the map and of its 5x5 surroundings: the sum over keys and values comes first, so
    its cost grows with the number of pixels and not with its square."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        heads = channels // head_dim
        self.qkv = ConvNorm(channels, 3 * channels, norm=False)
        self.aggreg = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(3 * channels, 3 * channels, 5, padding=2, groups=3 * channels, bias=False),
                    nn.Conv2d(3 * channels, 3 * channels, 1, groups=3 * heads, bias=False),
                )
            ]
        )
        self.proj = ConvNorm(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        batch, _, height, width = x.shape
        qkv = self.qkv(x).contiguous()
        depthwise, grouped = self.aggreg[0].children()
        assert isinstance(depthwise, nn.Conv2d)
        assert isinstance(grouped, nn.Conv2d)
        scales = torch.cat([qkv, self._aggregate(qkv, depthwise, grouped)], dim=1)
        scales = scales.reshape(batch, -1, 3 * self.head_dim, height * width).transpose(2, 3)
        query, key, value = scales.float().chunk(3, dim=-1)  # sums over all pixels: not in 16 bits
        with torch.autocast(x.device.type, enabled=False):
            value = F.pad(value, (0, 1), value=1.0)  # the last column sums the weights
            out = F.relu(query) @ (F.relu(key).transpose(2, 3) @ value)
            out = out[..., :-1] / (out[..., -1:] + 1e-5)
        out = out.to(x.dtype).transpose(1, 2).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        projected: Tensor = self.proj(out)
        return projected

    @staticmethod
    def _aggregate(qkv: Tensor, depthwise: nn.Conv2d, grouped: nn.Conv2d) -> Tensor:
        """The second of the two convolutions, 1x1 in groups, as the multiplication of matrices that it is."""
        near = depthwise(qkv).contiguous()
        weight = grouped.weight.view(grouped.groups, -1, grouped.weight.shape[1])
        return (weight @ near.reshape(len(qkv), grouped.groups, weight.shape[2], -1)).view_as(qkv)


class AttentionBlock(nn.Module):
    """Linear attention, then a bottleneck."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.context_module = Residual(LinearAttention(channels, head_dim))
        self.local_module = Residual(Bottleneck(channels, channels, 6))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        out: Tensor = self.local_module(self.context_module(x))
        return out


class Stem(nn.Sequential):
    """A 3x3 convolution of stride 2 and residual pairs."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.add_module("in_conv", ConvNorm(3, channels, 3, 2, gelu=True))
        for number in range(depth):
            self.add_module(f"res{number}", Residual(ConvPair(channels)))


class Stage(nn.Module):
    """A block of stride 2 and ``depth`` more."""

    def __init__(self, config: EfficientVitConfig, number: int) -> None:
        super().__init__()
        before, width = config.widths[number - 1 : number + 1]
        depth = config.depths[number]
        blocks: list[nn.Module]
        if number <= 2:
            blocks = [Residual(FusedBottleneck(before, width, 16, 2), shortcut=False)]
            blocks += [Residual(FusedBottleneck(width, width, 4)) for _ in range(depth)]
        elif number == 3:
            blocks = [Residual(Bottleneck(before, width, 16, 2), shortcut=False)]
            blocks += [Residual(Bottleneck(width, width, 4)) for _ in range(depth)]
        else:
            blocks = [Residual(Bottleneck(before, width, 24, 2), shortcut=False)]
            blocks += [AttentionBlock(width, config.head_dim) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2))."""
        out: Tensor = self.blocks(x)
        return out
