"""Networks without values cost nothing to build and have every shape."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig
from groundingml.models.skeleton import without_values

CONFIGS = {
    "tiny": GroundingDinoConfig.grounding_dino_tiny,
    "mm-tiny": GroundingDinoConfig.mm_grounding_dino_tiny,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_all_parameters_are_shapes_only(name):
    with without_values():
        model = GroundingDino(CONFIGS[name]())
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model.state_dict()["level_embedding"].shape == (4, 256)


def test_random_values_work_again_afterwards():
    with without_values():
        pass
    assert torch.empty(100).normal_().std() > 0.5
    assert torch.randn(100).device.type == "cpu"


def test_the_compiler_is_not_imported():
    code = (
        "import sys; from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig as C\n"
        "from groundingml.models.skeleton import without_values\n"
        "with without_values(): GroundingDino(C.grounding_dino_tiny())\n"
        "heavy = {'transformers', 'sympy', 'torch._dynamo', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
