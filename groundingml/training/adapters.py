"""Low-rank adapters (LoRA, arXiv:2106.09685) by peft: what is trained is small, and what was known is kept.

They sit on the attention of the enhancer and the decoder. Merged, they are gone: the weights are those of an
ordinary model, which loads everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Layers called with nothing but their input. The fusion's projections are read as matrices, and those before
# an activation apply it themselves: an adapter beside them would be ignored or come after it.
_LAYERS = (
    r"(attention|self_attention|text_attention|image_attention)\.(query|key|value|output|qkv|projection)"
)


@dataclass(frozen=True)
class AdapterConfig:
    """rank: of the matrices; alpha: their product counts alpha / rank times; parts: of the model, that get
    adapters; also: parts trained as they are, beside the adapters."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    parts: tuple[str, ...] = ("enhancer", "decoder")
    also: tuple[str, ...] = ("heads", "proposals")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the rank of an adapter must be at least 1, got {self.rank}")


def add_adapters(model: nn.Module, config: AdapterConfig) -> None:
    """Put adapters on the model's attention; only they and ``config.also`` have gradients afterwards.

    Raises:
        ImportError: peft is missing. ValueError: no layer to sit on.
    """
    peft = _import_peft()
    parts = "|".join(re.escape(part) for part in config.parts)
    pattern = rf"({parts})\..*\b{_LAYERS}"
    if not any(re.fullmatch(pattern, name) for name, _ in model.named_modules()):
        raise ValueError(f"there is no attention in {', '.join(config.parts)} that adapters could sit on")
    lora = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=pattern
    )
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    peft.inject_adapter_in_model(lora, model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(True)
        else:
            among = any(name == part or name.startswith(part + ".") for part in config.also)
            parameter.requires_grad_(among and trainable.get(name, False))


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add every adapter to the weights below it and take it away. Nothing happens without adapters."""
    layers = [(name, module) for name, module in model.named_modules() if hasattr(module, "base_layer")]
    for name, layer in layers:
        adapter: Any = layer
        adapter.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, adapter.get_base_layer())


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "the recipe lora needs peft, which is not installed: pip install 'groundingml[train]' "
            "(or choose --recipe head)"
        ) from error
    return peft
