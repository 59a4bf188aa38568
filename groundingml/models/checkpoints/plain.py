"""A folder with a model as it is: our config and our parameter names, nothing rounded or renamed.

For families that no other library has a class for: `config.json` ("model_type": "groundingml-plain" and the
config's fields, among them "family") and `model.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from groundingml.models.checkpoints.errors import CheckpointError
from groundingml.models.checkpoints.weights import read_weights
from groundingml.models.glip.config import GlipConfig
from groundingml.models.grounding_dino.config import GroundingDinoConfig

if TYPE_CHECKING:
    from groundingml.models.glip.network import Glip
    from groundingml.models.grounding_dino.network import GroundingDino

MODEL_TYPE = "groundingml-plain"


def save_plain(model: GroundingDino | Glip, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors`; a tokenizer is not written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = {"model_type": MODEL_TYPE, **model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def read_plain(folder: str | Path) -> tuple[GroundingDinoConfig | GlipConfig, dict[str, Tensor]]:
    """Read what `save_plain` wrote: the config and the parameters by name.

    Raises:
        CheckpointError: files that are missing or damaged, or a config of another kind.
    """
    folder = Path(folder)
    try:
        values = json.loads((folder / "config.json").read_text("utf-8"))
        if values.pop("model_type") != MODEL_TYPE:
            raise ValueError(f'expected "model_type": "{MODEL_TYPE}"')
        kind = GlipConfig if values.get("family") == GlipConfig.family else GroundingDinoConfig
        config = kind.from_dict(values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a model: {error}") from error
    return config, read_weights([folder / "model.safetensors"])
