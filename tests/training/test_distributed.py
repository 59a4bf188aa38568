"""Two real processes under torchrun do what one does with the same images in a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("two_processes.py")
DEADLINE_S = 300


def train(folder: Path, name: str, processes: int, batch_size: int) -> Any:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(PROGRAM), str(folder), name, str(batch_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / f"{name}.json").read_text())


def test_two_processes_take_the_same_steps_as_one(coco_folder: Path) -> None:
    """Two images a step: together, or one in each process. The third image leaves the second process with
    nothing to do in the last step of each epoch."""
    alone = train(coco_folder, "alone", processes=1, batch_size=2)
    together = train(coco_folder, "together", processes=2, batch_size=1)
    for recipe in ("head", "lora"):
        one, two = alone[recipe], together[recipe]
        assert len(one["steps"]) == len(two["steps"]) == 4
        for ours, theirs in zip(one["steps"], two["steps"], strict=True):
            assert ours["losses"].keys() == theirs["losses"].keys()
            assert any(name.startswith("denoising_") for name in ours["losses"])
            for name, value in ours["losses"].items():
                assert theirs["losses"][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
            assert theirs["norm"] == pytest.approx(ours["norm"], rel=1e-3)
        assert two["weights"] == pytest.approx(one["weights"], rel=1e-4)
        written = (coco_folder / f"together-{recipe}").iterdir()
        assert [file.name for file in written] == ["last.pt"]  # by one of them
