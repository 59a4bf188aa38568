from __future__ import annotations

import torch

from groundingml.models.drop_path import DropPath


def test_whole_samples_are_dropped_and_the_mean_is_kept():
    torch.manual_seed(0)
    out = DropPath(0.5).train()(torch.ones(4000, 3, 2))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out.amax((1, 2)), out.amin((1, 2)))
    assert abs(out.mean() - 1.0) < 0.05


def test_nothing_happens_outside_training_or_at_rate_zero():
    x = torch.randn(5, 2)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x
