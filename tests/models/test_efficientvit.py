"""EfficientViT against timm's implementation: stored outputs of a small one, the real one where it is."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from groundingml.models.efficientvit import EfficientVit, EfficientVitConfig

DATA = Path(__file__).parent / "data" / "efficientvit.npz"
SMALL = EfficientVitConfig(
    widths=(8, 16, 16, 32, 64), depths=(1, 1, 1, 1, 2), head_dim=16, out_stages=(1, 2, 3, 4)
)


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Weights that depend on the parameters' names and shapes alone."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith("head.") or not tensor.is_floating_point():
            continue
        if "running_var" in name or name.endswith("norm.weight"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("grad", [False, True], ids=["fused convolutions", "ordinary ops"])
def test_maps_are_those_of_timm(grad: bool) -> None:
    model = EfficientVit(SMALL).eval()
    fill(model)
    with np.load(DATA) as file:
        with torch.set_grad_enabled(grad):
            found = model(torch.from_numpy(file["pixel_values"]))
        for number, result in enumerate(found, start=1):
            expected = torch.from_numpy(file[f"stage{number}"])
            torch.testing.assert_close(result.detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_large_one_is_that_of_timm() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.create_model("efficientvit_l1", pretrained=False).eval()
    fill(theirs)
    ours = EfficientVit(EfficientVitConfig()).eval()
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("head.")}
    ours.load_state_dict(state)
    image = torch.randn(1, 3, 161, 203)
    with torch.no_grad():
        expected = theirs.forward_intermediates(image, intermediates_only=True)[1:]
        for result, exactly in zip(ours(image), expected, strict=True):
            torch.testing.assert_close(result, exactly, rtol=1e-4, atol=1e-4)


def test_in_training_batch_statistics_are_used_and_gradients_flow() -> None:
    model = EfficientVit(SMALL)
    before = model.stem.in_conv.norm.running_mean.clone()
    sum(x.mean() for x in model(torch.randn(2, 3, 64, 64))).backward()
    assert not torch.equal(model.stem.in_conv.norm.running_mean, before)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"widths": (8, 16)}, "a stem and four stages, got 2 and 5"),
        ({"out_stages": (2, 5)}, "among 1 to 4"),
        ({"head_dim": 48}, "not a multiple of head_dim=48"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EfficientVitConfig(**changes)


def test_what_is_folded_follows_the_weights() -> None:
    """In inference the norms are folded into weights that are kept: not after the weights have changed."""
    config = EfficientVitConfig(widths=(8, 8, 16, 32, 32), depths=(1, 1, 1, 1, 1), head_dim=8)
    torch.manual_seed(0)
    model, x = EfficientVit(config).eval(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        before = model(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for mine, copied in zip(before, twin(x), strict=True):
            assert torch.equal(mine, copied)
        for parameter in twin.parameters():
            parameter.mul_(1.25)
        for norm in (module for module in twin.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.running_mean.add_(0.1)
        changed = twin(x)
    with torch.enable_grad():  # where nothing is folded
        for folded, plain in zip(changed, twin(x), strict=True):
            torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed[0], before[0])
