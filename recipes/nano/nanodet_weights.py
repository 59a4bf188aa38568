"""NanoDet-g's published weights (a TensorFlow.js graph) in the modules of groundingml.models.nanodet."""

from __future__ import annotations

from pathlib import Path

import torch
from tfjs import Convolution, read_convolutions
from torch import nn

from groundingml.models.nanodet import CspStage, NanoDet, NanoDetConfig, NanoDetHead


def load_nanodet(model_json: Path) -> tuple[NanoDet, NanoDetHead]:
    """The backbone and the complete head (80 classes and boxes) with the weights of `nanodet.json`."""
    convolutions = read_convolutions(model_json)
    config = NanoDetConfig()
    nanodet, head = NanoDet(config).eval(), NanoDetHead(config).eval()
    order = list(_convolutions_in_graph_order(nanodet))
    with torch.no_grad():
        for index, module in enumerate(order):
            source = convolutions["convolution" if index == 0 else f"convolution_{index}"]
            _fill(module, source, torch.from_numpy(source.weight))
        # NanoDet was trained on BGR.
        nanodet.stem.weight.copy_(nanodet.stem.weight.flip(1))
        # After the backbone and the laterals, the graph alternates a level's 3x3 tower and its last 1x1.
        for level, tower in enumerate(nanodet.towers):
            first = len(order) + 2 * level
            source = convolutions[f"convolution_{first}"]
            _fill(tower, source, torch.from_numpy(source.weight))
            last = convolutions[f"convolution_{first + 1}"]
            weight, bias = torch.from_numpy(last.weight)[:, :, 0, 0], torch.from_numpy(last.bias)
            for layer, rows in (
                (head.classes[level], slice(0, config.num_classes)),
                (head.boxes[level], slice(config.num_classes, None)),
            ):
                layer.weight.copy_(weight[rows])
                layer.bias.copy_(bias[rows])
    return nanodet, head


def _convolutions_in_graph_order(nanodet: NanoDet) -> list[nn.Module]:
    modules: list[nn.Module] = [nanodet.stem]
    for stage in nanodet.stages:
        assert isinstance(stage, CspStage)
        modules.append(stage.enter)
        for block in stage.blocks:
            modules += [block.first, block.second]
        modules.append(stage.leave)
    return [*modules, *nanodet.laterals]


def _fill(module: nn.Module, source: Convolution, weight: torch.Tensor) -> None:
    if module.weight.shape != weight.shape:
        raise ValueError(
            f"{source.name} is {tuple(weight.shape)}, the module takes {tuple(module.weight.shape)}"
        )
    module.weight.copy_(weight)
    module.bias.copy_(torch.from_numpy(source.bias))
