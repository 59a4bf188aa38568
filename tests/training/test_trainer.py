"""The trainer learns, trains only what it is told to, and goes on after an interruption as if there had been
none."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from groundingml.inference import Detector
from groundingml.models.drop_path import DropPath
from groundingml.models.grounding_dino import GroundingDino
from groundingml.training import (
    Augmentation,
    CachedBackbone,
    CheckpointError,
    DenoisingConfig,
    ImageDataset,
    StepReport,
    Trainer,
    TrainingConfig,
    evaluate_detector,
    load_weights,
    read_coco,
)

NewModel = Callable[..., GroundingDino]

QUICK = TrainingConfig(
    epochs=2,
    batch_size=1,
    learning_rate=1e-3,
    warmup_steps=2,
    drop_epochs=(1,),
    denoising=DenoisingConfig(queries=4),
)


def make_dataset(
    folder: Path, model: GroundingDino, augmentation: Augmentation | None = None
) -> ImageDataset:
    return ImageDataset(read_coco(folder / "annotations.json", folder), model.config, augmentation)


def weights_of(model: GroundingDino) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert one.keys() == other.keys()
    assert not different


@pytest.mark.slow
def test_a_random_network_learns_the_pictures_by_heart(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, new_model: NewModel
) -> None:
    model = new_model()
    dataset = make_dataset(coco_folder, model)
    config = TrainingConfig(
        epochs=90,
        batch_size=3,
        learning_rate=2e-3,
        frozen=("text_encoder.bert",),
        warmup_steps=10,
        drop_epochs=(75,),
        clip_norm=1.0,
        denoising=DenoisingConfig(queries=10),
    )
    reports: list[StepReport] = []
    annotations = read_coco(coco_folder / "annotations.json", coco_folder)
    before = evaluate_detector(Detector(model, tokenizer, device="cpu"), annotations)
    Trainer(model, tokenizer, dataset, config, tmp_path / "run", on_step=reports.append).fit()
    after = evaluate_detector(Detector(model, tokenizer, device="cpu"), annotations)

    assert before.map50 < 0.2
    assert after.map50 > 0.95
    assert after.map > 0.6
    last = reports[-1].losses
    assert last["decoder_1.focal"] < 0.1
    assert last["decoder_1.l1"] < 0.5
    assert last["encoder.l1"] < 0.5
    found = Detector(model, tokenizer, device="cpu")(
        coco_folder / "1.png", labels=["red square", "blue square", "green dot"], threshold=0.3
    )
    assert found.labels == ["red square"]
    assert found.boxes_xyxy[0].tolist() == pytest.approx([8, 8, 40, 40], abs=4)
    nothing = Detector(model, tokenizer, device="cpu")(
        coco_folder / "3.png", labels=["red square"], threshold=0.3
    )
    assert len(nothing) == 0


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5], ids=lambda step: f"stopped after step {step} of 6")
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    stop_after: int, coco_folder: Path, tokenizer: Any, tmp_path: Path, new_model: NewModel
) -> None:
    """With drop path, augmentation, sampled prompts, denoising noise, weight averaging and evaluation all at
    work."""
    config = replace(QUICK, averaging=0.9)

    def trainer(folder: str, **callbacks: Any) -> Trainer:
        model = new_model()
        dataset = make_dataset(coco_folder, model, Augmentation(flip=0.5, shortest_sides=(48, 64)))

        def evaluate(model: GroundingDino) -> dict[str, float]:
            return {"map50": torch.rand(()).item()}  # an evaluation may draw numbers, which must not matter

        return Trainer(model, tokenizer, dataset, config, tmp_path / folder, evaluate=evaluate, **callbacks)

    whole = trainer("whole")
    reports: list[StepReport] = []
    whole.on_step = reports.append
    assert whole.fit().finished
    assert len(reports) == 6

    stopped = trainer(
        "stopped", on_step=lambda report: report.step == stop_after and os.kill(os.getpid(), signal.SIGTERM)
    )
    result = stopped.fit()
    assert not result.finished
    assert result.steps == stop_after

    later_reports: list[StepReport] = []
    resumed = trainer("stopped", on_step=later_reports.append)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.add_(1.0)  # nothing of the fresh model may survive
    assert resumed.fit(resume=True).finished
    assert_equal_weights(weights_of(resumed.model), weights_of(whole.model))
    assert later_reports == reports[stop_after:]
    average = torch.load(tmp_path / "stopped" / "last.pt", weights_only=True)["average"]["average"]
    expected = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["average"]["average"]
    assert_equal_weights(average, expected)


def test_ctrl_c_writes_a_checkpoint_and_gives_the_signal_back(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino
) -> None:
    former = signal.getsignal(signal.SIGINT)
    trainer = Trainer(
        model, tokenizer, make_dataset(coco_folder, model), QUICK, tmp_path / "run",
        on_step=lambda report: os.kill(os.getpid(), signal.SIGINT),
    )  # fmt: skip
    result = trainer.fit()
    assert not result.finished
    assert result.steps == 1
    assert result.last.is_file()
    assert signal.getsignal(signal.SIGINT) is former


def test_gradients_reach_what_is_trained_and_nothing_else_moves(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino
) -> None:
    before = weights_of(model)
    frozen = ("backbone", "text_encoder.bert", "decoder.layers.0")
    config = replace(QUICK, frozen=frozen, epochs=1)
    trainer = Trainer(model, tokenizer, make_dataset(coco_folder, model), config, tmp_path / "run")
    trainer.fit()
    assert not model.backbone.training
    assert not model.text_encoder.bert.training
    assert model.decoder.training
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in moved if name.startswith(frozen)}
    # Of one-dimensional parameters, some have no effect (the bias of an attention's keys), so only matrices
    # are asked for.
    should_move = {name for name, p in model.named_parameters() if p.ndim > 1 and not name.startswith(frozen)}
    assert should_move - moved == set()


def test_unfreezing_everything_moves_the_encoders_too(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino
) -> None:
    before = weights_of(model)
    config = replace(QUICK, frozen=(), epochs=1, learning_rate_factors={"backbone": 0.1})
    Trainer(model, tokenizer, make_dataset(coco_folder, model), config, tmp_path / "run").fit()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    for part in (
        "backbone.",
        "text_encoder.bert.encoder",
        "text_encoder.projection",
        "decoder.",
        "enhancer.",
    ):
        assert any(name.startswith(part) for name in moved), part


def test_a_step_is_the_same_however_its_images_are_split_over_batches(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino
) -> None:
    """Three images in one batch, and one by one accumulated: 1, 2 and 0 boxes, so that a mean of the batches'
    means would differ. Losses and gradients must agree over several steps, with denoising queries too."""
    config = replace(model.config, fusion_drop_path=0.0)
    reports: dict[int, list[StepReport]] = {}
    for batch_size in (1, 3):
        same = GroundingDino(config)
        same.load_state_dict(model.state_dict())
        settings = replace(QUICK, batch_size=batch_size, accumulate=3 // batch_size, epochs=3, clip_norm=1e9)
        reports[batch_size] = []
        dataset = make_dataset(coco_folder, same)
        trainer = Trainer(
            same, tokenizer, dataset, settings, tmp_path / str(batch_size), on_step=reports[batch_size].append
        )
        trainer.fit()
        assert len(reports[batch_size]) == 3
    for split, whole in zip(reports[1], reports[3], strict=True):
        assert split.losses.keys() == whole.losses.keys()
        for name, value in whole.losses.items():
            assert split.losses[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
        assert split.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-3)


def test_evaluation_does_not_change_what_is_trained(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, new_model: NewModel
) -> None:
    trained = []
    for evaluate in (None, lambda model: {"map50": torch.rand(()).item()}):
        model = new_model()
        dataset = make_dataset(coco_folder, model)
        config = replace(QUICK, averaging=0.9, evaluate_first=True)
        Trainer(model, tokenizer, dataset, config, tmp_path / str(evaluate), evaluate=evaluate).fit()
        trained.append(weights_of(model))
    assert_equal_weights(*trained)


def test_the_weights_a_run_begins_with_may_be_the_best(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino, new_model: NewModel
) -> None:
    before = weights_of(model)
    scores = iter([0.9, 0.1, 0.2])
    config = replace(QUICK, evaluate_first=True)
    dataset = make_dataset(coco_folder, model)
    trainer = Trainer(
        model, tokenizer, dataset, config, tmp_path / "run", evaluate=lambda model: {"map50": next(scores)}
    )
    result = trainer.fit()
    assert [entry["epoch"] for entry in result.history] == [0, 1, 2]
    assert result.best is not None
    fresh = new_model(5)
    load_weights(fresh, result.best)
    assert_equal_weights(weights_of(fresh), before)


def test_the_best_weights_are_kept_and_can_be_loaded(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino, new_model: NewModel
) -> None:
    scores = iter([0.3, 0.7, 0.5])
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(model: GroundingDino) -> dict[str, float]:
        assert not model.training
        seen.append(weights_of(model))
        return {"map50": next(scores), "map": 0.0}

    config = replace(QUICK, epochs=3)
    result = Trainer(
        model, tokenizer, make_dataset(coco_folder, model), config, tmp_path / "run", evaluate=evaluate
    ).fit()
    assert [entry["map50"] for entry in result.history] == [0.3, 0.7, 0.5]
    assert result.best is not None
    fresh = new_model(5)
    assert load_weights(fresh, result.best) == {"map50": 0.7, "map": 0.0}
    assert_equal_weights(weights_of(fresh), seen[1])


def test_averaged_weights_are_what_is_evaluated(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino
) -> None:
    evaluated: list[dict[str, torch.Tensor]] = []

    def evaluate(model: GroundingDino) -> dict[str, float]:
        evaluated.append(weights_of(model))
        return {"map50": 0.5}

    config = replace(QUICK, epochs=1, averaging=0.99)
    trainer = Trainer(
        model, tokenizer, make_dataset(coco_folder, model), config, tmp_path / "run", evaluate=evaluate
    )
    trainer.fit()
    name = "decoder.norm.weight"
    assert not torch.equal(evaluated[0][name], model.state_dict()[name])


def test_a_run_with_other_settings_is_not_resumed(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino
) -> None:
    dataset = make_dataset(coco_folder, model)
    Trainer(model, tokenizer, dataset, replace(QUICK, epochs=1), tmp_path / "run").fit()
    other = replace(QUICK, learning_rate=5e-4)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.001, is 0\.0005"):
        Trainer(model, tokenizer, dataset, other, tmp_path / "run").fit(resume=True)


def test_a_finished_run_can_be_made_longer(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino
) -> None:
    dataset = make_dataset(coco_folder, model)
    short = replace(QUICK, epochs=1)
    assert Trainer(model, tokenizer, dataset, short, tmp_path / "run").fit().steps == 3
    assert Trainer(model, tokenizer, dataset, QUICK, tmp_path / "run").fit(resume=True).steps == 6


def test_diverged_training_stops_and_keeps_the_last_checkpoint(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino
) -> None:
    def spoil(report: StepReport) -> None:
        if report.step == 4:
            with torch.no_grad():
                model.decoder.norm.weight.fill_(math.nan)

    trainer = Trainer(
        model, tokenizer, make_dataset(coco_folder, model), QUICK, tmp_path / "run", on_step=spoil
    )
    with pytest.raises(FloatingPointError, match="diverged"):
        trainer.fit()
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["step"] == 3
    assert all(torch.isfinite(value).all() for value in state["model"].values())


@pytest.mark.parametrize("changes", [{"frozen": ()}, {"workers": 1}])
def test_a_cached_backbone_can_neither_be_trained_nor_run_in_workers(
    changes: dict[str, Any], coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino
) -> None:
    cached = CachedBackbone(make_dataset(coco_folder, model), model)
    with pytest.raises(ValueError, match="holds the backbone's maps"):
        Trainer(model, tokenizer, cached, replace(QUICK, **changes), tmp_path / "run")


def test_a_stop_during_evaluation_ends_the_run_before_the_next_epoch(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, model: GroundingDino
) -> None:
    def evaluate(model: GroundingDino) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"map50": 0.5}

    dataset = make_dataset(coco_folder, model)
    result = Trainer(model, tokenizer, dataset, QUICK, tmp_path / "run", evaluate=evaluate).fit()
    assert not result.finished
    assert result.steps == 3
    assert [entry["map50"] for entry in result.history] == [0.5]


@pytest.mark.gpu
def test_losses_on_a_gpu_are_those_of_the_cpu(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, new_model: NewModel
) -> None:
    """The first step, whose weights are equal, to fp32 rounding; then training goes on and resumes there."""
    first: dict[str, dict[str, float]] = {}
    for device in ("cpu", "cuda"):
        model = new_model()
        for module in model.modules():  # the two devices draw different random numbers
            if isinstance(module, DropPath):
                module.rate = 0.0
        model.to(device)
        dataset = make_dataset(coco_folder, model)
        reports: list[StepReport] = []
        config = replace(QUICK, batch_size=3, averaging=0.9)
        trainer = Trainer(model, tokenizer, dataset, config, tmp_path / device, on_step=reports.append)
        assert trainer.fit().finished
        longer = replace(config, epochs=3)
        assert Trainer(model, tokenizer, dataset, longer, tmp_path / device).fit(resume=True).steps == 3
        first[device] = reports[0].losses
    assert first["cuda"] == pytest.approx(first["cpu"], rel=1e-3, abs=1e-4)


def test_a_cached_backbone_trains_to_the_same_weights(
    coco_folder: Path, tokenizer: Any, tmp_path: Path, new_model: NewModel
) -> None:
    """Equal to rounding: the backbone runs on one image at a time and once, not in each epoch."""
    results = []
    for cached in (False, True):
        model = new_model()
        dataset: Any = make_dataset(coco_folder, model, Augmentation())
        if cached:
            dataset = CachedBackbone(dataset, model)
        config = replace(QUICK, batch_size=3, epochs=3)
        Trainer(model, tokenizer, dataset, config, tmp_path / str(cached)).fit()
        results.append(weights_of(model))
    for name, value in results[0].items():
        torch.testing.assert_close(
            results[1][name], value, atol=2e-4, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
        )
