"""What is trained, how fast, and the averaged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from groundingml.models.grounding_dino import GroundingDino
from groundingml.training.optimization import AveragedWeights, freeze, learning_rate_factor, parameter_groups


def test_freezing_by_prefix(model: GroundingDino) -> None:
    modules = freeze(model, ("backbone", "text_encoder.bert"))
    assert modules == [model.backbone, model.text_encoder.bert]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(("backbone.", "text_encoder.bert."))), name


def test_freezing_what_does_not_exist_is_an_error(model: GroundingDino) -> None:
    with pytest.raises(ValueError, match=r"cannot freeze 'backbon'.*backbone, decoder"):
        freeze(model, ("backbon",))


def test_every_trainable_parameter_is_in_one_group_with_its_rate(model: GroundingDino) -> None:
    freeze(model, ("text_encoder.bert",))
    groups = parameter_groups(model, 1e-3, 0.1, {"backbone": 0.1})
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    assert sum(len(group["params"]) for group in groups) == len(rates)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if name.startswith("text_encoder.bert."):
            assert id(parameter) not in rates
        elif name.startswith("backbone."):
            assert rates[id(parameter)] == pytest.approx(1e-4), name
        else:
            assert rates[id(parameter)] == pytest.approx(1e-3), name
    assert decays[id(model.decoder.norm.weight)] == 0
    assert decays[id(model.proposals.projection.weight)] == 0.1  # type: ignore[union-attr]
    assert model.query_embedding is not None
    assert decays[id(model.query_embedding.weight)] == 0


def test_the_longest_prefix_decides() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 2), "bc": nn.Linear(2, 2)})})
    groups = parameter_groups(model, 1.0, 0.1, {"a": 0.5, "a.b": 0.25})
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    assert rates[id(model["a"]["b"].weight)] == 0.25  # type: ignore[index]
    assert rates[id(model["a"]["bc"].weight)] == 0.5  # type: ignore[index]


def test_nothing_left_to_train_is_an_error() -> None:
    model = nn.Linear(2, 2)
    freeze(model, ("weight", "bias"))
    with pytest.raises(ValueError, match="nothing is left to train"):
        parameter_groups(model, 1.0, 0.0, {})


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0), (10, 0.1), (19, 0.1), (20, 0.01)],
)
def test_schedule_by_hand(step: int, expected: float) -> None:
    """Four steps of warm-up, a tenth at 10 and again at 20."""
    assert learning_rate_factor(step, 4, (10, 20), 0.1) == pytest.approx(expected)


def test_average_by_hand() -> None:
    """Decay min(0.9, 2/11), then min(0.9, 3/12): weight 0 -> 11 gives 11 * 9/11 = 9, then 21 gives 9 + 12 *
    3/4 = 18."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = AveragedWeights(model, 0.9)
    for weight, expected in ((11.0, 9.0), (21.0, 18.0)):
        nn.init.constant_(model.weight, weight)
        average.update(model)
        assert average.average["weight"].item() == pytest.approx(expected)
    average.swap(model)
    assert model.weight.item() == pytest.approx(18.0)
    average.swap(model)
    assert model.weight.item() == 21.0


def test_average_of_another_model_is_refused() -> None:
    average = AveragedWeights(nn.Linear(2, 2), 0.9)
    with pytest.raises(ValueError, match="do not belong to this model"):
        average.load_state_dict({"updates": 1, "average": {"other": torch.zeros(1)}})
