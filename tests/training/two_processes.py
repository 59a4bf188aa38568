"""Trains the tiny network for a few steps and writes what each step reported; started by `test_distributed`.

python two_processes.py FOLDER NAME BATCH_SIZE, by itself or under torchrun.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_config

from groundingml.models import load_tokenizer
from groundingml.models.grounding_dino import GroundingDino
from groundingml.training import DenoisingConfig, ImageDataset, StepReport, Trainer, TrainingConfig, read_coco
from groundingml.training.adapters import AdapterConfig
from groundingml.training.distributed import joined_processes


def main() -> None:
    folder, batch_size = Path(sys.argv[1]), int(sys.argv[3])
    torch.set_num_threads(1)
    told: dict[str, Any] = {}
    with joined_processes(torch.device("cpu")) as processes:
        for recipe, adapters in (("head", None), ("lora", AdapterConfig(rank=2))):
            torch.manual_seed(0)
            model = GroundingDino(replace(tiny_config(), fusion_drop_path=0.0))
            dataset = ImageDataset(read_coco(folder / "annotations.json", folder), model.config)
            config = TrainingConfig(
                epochs=2,
                batch_size=batch_size,
                learning_rate=1e-3,
                warmup_steps=2,
                adapters=adapters,
                denoising=DenoisingConfig(queries=4),
            )
            reports: list[StepReport] = []
            trainer = Trainer(
                model, load_tokenizer("nano"), dataset, config, folder / f"{sys.argv[2]}-{recipe}",
                on_step=reports.append, processes=processes,
            )  # fmt: skip
            trainer.fit()
            # What the processes end with must be one model.
            total = sum(parameter.double().abs().sum().item() for parameter in model.parameters())
            assert processes.max([total]) == [total]
            steps = [{"losses": report.losses, "norm": report.gradient_norm} for report in reports]
            told[recipe] = {"steps": steps, "weights": total}
        if processes.is_first:
            (folder / f"{sys.argv[2]}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
