"""Training under autocast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from groundingml.models.grounding_dino import GroundingDino
from groundingml.training import ImageDataset, StepReport, Trainer, TrainingConfig, read_coco
from groundingml.training.trainer import low_precision


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_changes_losses_by_little(
    precision: str, coco_folder: Path, tokenizer: Any, tmp_path: Path, new_model: Callable[..., GroundingDino]
) -> None:
    """The same first steps under autocast; losses themselves are computed in float32."""
    losses: dict[str, list[float]] = {"float32": [], precision: []}
    for name, seen in losses.items():
        model = new_model()
        dataset = ImageDataset(read_coco(coco_folder / "annotations.json", coco_folder), model.config)
        settings = TrainingConfig(epochs=2, batch_size=3, precision=name, learning_rate=1e-5)
        on_step: Callable[[StepReport], None] = lambda report, seen=seen: seen.append(report.loss)  # noqa: E731
        Trainer(model, tokenizer, dataset, settings, tmp_path / name, on_step=on_step).fit()
        assert all(p.dtype is torch.float32 for p in model.parameters())
    assert losses[precision] == pytest.approx(losses["float32"], rel=0.05)
    assert losses[precision] != losses["float32"]


def test_the_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert low_precision("auto", torch.device("cpu")) is None
    assert low_precision("bfloat16", torch.device("cpu")) is torch.bfloat16
    with pytest.raises(ValueError, match="precision must be one of auto"):
        TrainingConfig(precision="int8")
