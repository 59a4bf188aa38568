"""Whole runs: from annotated pictures to a version that finds what was taught."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from groundingml.inference import Detector
from groundingml.models.checkpoints.save import save_pretrained
from groundingml.models.glip import Glip, GlipConfig
from groundingml.models.grounding_dino import GroundingDino
from groundingml.models.grounding_dino.config import BERT_BASE
from groundingml.models.swin import SwinConfig
from groundingml.training import (
    Annotations,
    CachedBackbone,
    Callbacks,
    StepReport,
    TrainingResult,
    read_coco,
    train_from_dataset,
)

QUICK = {"scales": (0.5,), "cached_views": 2, "averaging": None}


@pytest.fixture
def examples(coco_folder: Path) -> Annotations:
    return read_coco(coco_folder / "annotations.json", coco_folder)


def run(examples: Annotations, folder: Path, steps: int, **more: Any) -> TrainingResult:
    options = {**QUICK, "steps": steps, **more.pop("options", {})}
    return train_from_dataset(examples, folder, options=options, device="cpu", **more)


@pytest.mark.slow
def test_the_embedded_model_learns_new_names_and_forgets_none(examples: Annotations, tmp_path: Path) -> None:
    told: list[str] = []
    steps: list[StepReport] = []
    result = run(
        examples,
        tmp_path / "version",
        steps=60,
        callbacks=Callbacks(on_stage=told.append, on_step=steps.append),
    )
    assert result.finished
    assert result.version == tmp_path / "version"
    assert sorted(file.name for file in result.version.iterdir()) == [
        "config.json",
        "model.safetensors",
        "training.json",
    ]
    assert len(steps) == result.steps
    assert steps[-1].loss < steps[0].loss / 2
    assert any("training on 3 images, recipe lora" in text for text in told)

    taught = Detector.from_pretrained(str(result.version), device="cpu")
    second = examples.records[1]
    found = taught(second.path, labels=["red square", "blue square"], threshold=0.3)
    best = dict(zip(found.labels[::-1], found.boxes_xyxy[::-1], strict=True))
    assert best["blue square"] == pytest.approx((24, 16, 60, 52), abs=6)
    assert best["red square"] == pytest.approx((2, 2, 18, 18), abs=6)
    # All that was known is answered as it was.
    cat = Path(__file__).parents[2] / "examples" / "photos" / "cat.jpg"
    before = Detector.from_pretrained("nano", device="cpu")(cat, labels=["cat", "person"], threshold=0.01)
    after = taught(cat, labels=["cat", "person"], threshold=0.01)
    assert (before.scores == after.scores).all()
    assert (before.boxes_xyxy == after.boxes_xyxy).all()

    provenance = json.loads((result.version / "training.json").read_text())
    assert provenance["base"]["source"] == "nano"
    assert provenance["recipe"]["name"] == "lora"
    assert (provenance["images"], provenance["boxes"]) == (3, 3)


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(examples: Annotations, tmp_path: Path) -> None:
    whole = run(examples, tmp_path / "whole", steps=6)
    seen: list[int] = []
    first = run(
        examples, tmp_path / "parts", steps=6, should_stop=lambda: len(seen) == 3,
        callbacks=Callbacks(on_step=lambda report: seen.append(report.step)),
    )  # fmt: skip
    assert not first.finished
    assert first.version is None
    assert not (tmp_path / "parts" / "config.json").exists()  # never half a version
    second = run(
        examples, tmp_path / "parts", steps=6, resume=True,
        callbacks=Callbacks(on_step=lambda report: seen.append(report.step)),
    )  # fmt: skip
    assert second.finished
    assert seen == list(range(1, whole.steps + 1))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_the_best_measured_weights_are_kept(examples: Annotations, tmp_path: Path) -> None:
    numbers: list[float] = []
    result = run(
        examples, tmp_path / "version", steps=4, validation=examples, options={"evaluations": 2},
        callbacks=Callbacks(on_evaluation=lambda found: numbers.append(found["map50"])),
    )  # fmt: skip
    assert len(result.history) == len(numbers) == 2
    assert not (tmp_path / "version" / "checkpoints").exists()


@pytest.mark.parametrize("recipe", ["head", "lora", "full"])
def test_every_recipe_gives_a_version_that_transformers_loads_too(
    recipe: str,
    examples: Annotations,
    tmp_path: Path,
    new_model: Callable[..., GroundingDino],
) -> None:
    """Sizes as transformers' class has them; the weights are random."""
    from transformers import AutoModelForZeroShotObjectDetection

    sizes = replace(new_model().config, encoder_heads=4, group_norm_groups=32)
    model = GroundingDino(sizes)
    save_pretrained(model, tmp_path / "base")
    result = train_from_dataset(
        examples, tmp_path / "version", recipe, tmp_path / "base", device="cpu",
        options={"steps": 2, "scales": (1.0,), "warmup_steps": 1, "averaging": None, "learning_rate": 1e-3},
    )  # fmt: skip
    assert result.version is not None
    ours = Detector.from_pretrained(str(result.version), device="cpu").model
    theirs, told = AutoModelForZeroShotObjectDetection.from_pretrained(
        str(result.version), output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    begun, ended = model.state_dict(), ours.state_dict()
    assert begun.keys() == ended.keys()  # adapters are merged in
    moved = {name for name, value in begun.items() if not torch.equal(value, ended[name])}
    parts = {name.split(".")[0] for name in moved}
    assert {"decoder", "enhancer"} <= parts
    assert ("backbone" in parts) == (recipe == "full")
    if recipe == "lora":
        assert not any(".ffn." in name or ".fusion." in name for name in moved)
    assert theirs.config.d_model == model.config.d_model


@pytest.mark.parametrize("recipe", ["head", "lora", "full"])
def test_glip_has_the_same_recipes(recipe: str, examples: Annotations, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = GlipConfig(
        backbone=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4),
        text_config=BERT_BASE | bert,
        d_model=32,
        tower_layers=1,
        fusion_dim=16,
        fusion_heads=2,
        image_size=(64, 96),
    )
    model = Glip(config)
    save_pretrained(model, tmp_path / "base")
    result = train_from_dataset(
        examples, tmp_path / "version", recipe, tmp_path / "base", device="cpu", validation=examples,
        options={"steps": 2, "scales": (1.0,), "warmup_steps": 1, "averaging": None, "evaluations": 1},
    )  # fmt: skip
    assert result.version is not None
    assert "map50" in result.history[-1]
    trained = Detector.from_pretrained(str(result.version), device="cpu").model.state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, trained[name])}
    parts = {name.split(".")[0] for name in moved}
    assert {"neck", "tower", "head"} <= parts
    assert ("backbone" in parts) == ("text_encoder" in parts) == (recipe == "full")


def test_what_cannot_be_learned_from_is_refused(examples: Annotations, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image has a box"):
        run(replace(examples, records=examples.records[2:]), tmp_path, steps=1)
    with pytest.raises(ValueError, match="no image to train on"):
        run(replace(examples, records=[]), tmp_path, steps=1)
    with pytest.raises(ValueError, match="no recipe 'quick'; choose one of head, lora, full"):
        run(examples, tmp_path, steps=1, recipe="quick")
    with pytest.raises(ValueError, match="recipes have no step;"):
        run(examples, tmp_path, steps=1, options={"step": 3})


def test_many_images_are_not_all_kept_in_memory(
    examples: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for less than two views of each image the backbone runs in every step."""
    monkeypatch.setattr(CachedBackbone, "sample", None)  # would be called
    monkeypatch.setattr("groundingml.training.run.MOST_CACHED_BYTES", 1 << 20)
    losses: list[float] = []
    result = run(
        examples, tmp_path / "version", steps=2, callbacks=Callbacks(on_step=lambda r: losses.append(r.loss))
    )
    assert result.finished
    assert len(losses) == 2
