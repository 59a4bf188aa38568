"""Our own compact layout, made for the model that ships with the package.

A folder holds `config.json` ("model_type": "groundingml" and the fields of GroundingDinoConfig) and
`model.safetensors`. In it the matrices of the text encoder, most of a small model, are int8 with one scale
for each row (parameter `x` is stored as `x` and `x.scale`); everything else is float16. Loading gives
float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from groundingml.models.checkpoints.errors import CheckpointError
from groundingml.models.checkpoints.weights import read_weights
from groundingml.models.grounding_dino.config import GroundingDinoConfig

if TYPE_CHECKING:
    from groundingml.models.grounding_dino.network import GroundingDino

MODEL_TYPE = "groundingml"
_INT8_PREFIX = "text_encoder.bert."
_SCALE = ".scale"


def save_native(model: GroundingDino, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors`; a tokenizer is not written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = {"model_type": MODEL_TYPE, **model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    weights = folder / "model.safetensors"
    save_file(pack(model.state_dict()), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes through a private temporary file


def read_native(folder: str | Path) -> tuple[GroundingDinoConfig, dict[str, Tensor]]:
    """Read what `save_native` wrote: the config and float32 parameters by name.

    Raises:
        CheckpointError: files that are missing or damaged, or a config of another kind.
    """
    folder = Path(folder)
    try:
        config = config_from_native(json.loads((folder / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a model of this family: {error}"
        ) from error
    return config, unpack(read_weights([folder / "model.safetensors"]))


def config_from_native(values: Mapping[str, Any]) -> GroundingDinoConfig:
    """The config of a `config.json` of this layout.

    Raises:
        ValueError: another "model_type", or unknown fields.
    """
    if values.get("model_type") != MODEL_TYPE:
        raise ValueError(f'expected "model_type": "{MODEL_TYPE}", got {values.get("model_type")!r}')
    return GroundingDinoConfig.from_dict(
        {name: value for name, value in values.items() if name != "model_type"}
    )


def pack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters -> what is stored: the text encoder's matrices as int8 and a float16 scale per row, the
    rest float16."""
    packed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            packed[name] = tensor.contiguous()
        elif name.startswith(_INT8_PREFIX) and tensor.ndim == 2:
            scale = (tensor.float().abs().amax(dim=1) / 127.0).clamp(min=1e-6).half()
            rounded = (tensor.float() / scale.float().unsqueeze(1)).round()
            packed[name] = rounded.clamp(-127, 127).to(torch.int8)
            packed[name + _SCALE] = scale
        else:
            packed[name] = tensor.half().contiguous()
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is stored -> float32 parameters."""
    weights: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if tensor.dtype == torch.int8:
            scale = packed.get(name + _SCALE)
            if scale is None:
                raise CheckpointError(f"{name} is int8, but {name + _SCALE} is missing")
            weights[name] = tensor.float() * scale.float().unsqueeze(1)
        elif not (name.endswith(_SCALE) and name.removesuffix(_SCALE) in packed):
            weights[name] = tensor.float() if tensor.is_floating_point() else tensor
    return weights
