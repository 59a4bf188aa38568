"""Wrong arguments raise errors that say what came and what was expected."""

from __future__ import annotations

import pytest
import torch

from groundingml import ops
from groundingml.ops.checks import level_shapes


@pytest.mark.parametrize(
    ("argument", "change", "error", "message"),
    [
        ("value", lambda t: t[0], ValueError, r"value must have shape \(B, S, M, D\), got \(83, 3, 8\)"),
        ("value", lambda t: t[:, :-1], ValueError, r"S = 83 rows.*got S = 82"),
        ("value", lambda t: t.to(torch.int32), TypeError, r"value must be float64.*got torch.int32"),
        ("value", lambda t: t[:, :, :0], ValueError, r"at least one head and one channel"),
        ("value", lambda t: t.double(), TypeError, r"must be torch.float64 when value is torch.float64"),
        (
            0,
            lambda t: t[..., :1],
            ValueError,
            r"\(B, Q, M, L, P, 2\) = \(2, 13, 3, 2, 4, 2\), got \(2, 13, 3, 2, 4, 1\)",
        ),
        (0, lambda t: t[:, :, :, :, :0], ValueError, r"at least one point"),
        (0, lambda t: t[0], ValueError, r"sampling_locations must have shape \(B, Q, M, L, P, 2\), got"),
        (
            0,
            lambda t: t.half(),
            TypeError,
            r"sampling_locations must be torch.float32 when value is torch.float32",
        ),
        (
            1,
            lambda t: t[:, :, :2],
            ValueError,
            r"attention_weights must have shape .*\(2, 13, 3, 2, 4\), got",
        ),
        (1, lambda t: t.to("meta"), ValueError, r"attention_weights is on meta but value is on cpu"),
    ],
)
def test_plain_op(make_inputs, argument, change, error, message):
    inputs = make_inputs()
    if argument == "value":
        inputs.value = change(inputs.value)
    else:
        inputs.geometry[argument] = change(inputs.geometry[argument])
    for module in (ops, ops.reference):
        with pytest.raises(error, match=message):
            inputs.call(module)


@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        (0, lambda t: t[..., :1], r"\(B, Q, L, 2\) or \(B, Q, L, 4\) = \(2, 13, 2, 2\), got \(2, 13, 2, 1\)"),
        (0, lambda t: t[:, :, :1], r"reference_points must have shape .*got \(2, 13, 1, 4\)"),
        (1, lambda t: t[:1], r"sampling_offsets must have shape .*got \(1, 13, 3, 2, 4, 2\)"),
        (2, lambda t: t[..., :5], r"attention_logits must have shape .*\(2, 13, 3, 8\), got \(2, 13, 3, 5\)"),
    ],
)
def test_from_offsets(make_inputs, argument, change, message):
    inputs = make_inputs(4)
    inputs.geometry[argument] = change(inputs.geometry[argument])
    for module in (ops, ops.reference):
        with pytest.raises(ValueError, match=message):
            inputs.call(module)


@pytest.mark.parametrize(
    ("spatial_shapes", "message"),
    [
        ([], "spatial_shapes is empty"),
        ([(7, 9, 1)], r"list of \(height, width\)"),
        ([(7, 9), (0, 20)], r"must be positive, got \(height, width\) = \(0, 20\)"),
        (torch.ones(2, 2), r"integers of shape \(L, 2\), got torch.float32"),
        (torch.ones(4, dtype=torch.int64), r"integers of shape \(L, 2\).*got torch.int64 of shape \(4,\)"),
    ],
)
def test_spatial_shapes(make_inputs, spatial_shapes, message):
    inputs = make_inputs()
    with pytest.raises(ValueError, match=message):
        ops.ms_deform_attn(inputs.value, spatial_shapes, *inputs.geometry)


def test_spatial_shapes_may_be_a_tensor(make_inputs):
    inputs = make_inputs()
    shapes = torch.tensor(inputs.levels)
    assert level_shapes(shapes) == inputs.levels
    assert torch.equal(ops.ms_deform_attn(inputs.value, shapes, *inputs.geometry), inputs.call())


def test_the_compiled_op_guards_itself(make_inputs, compiled):
    """torch.ops.groundingml.* can be called without the Python checks; it must not read out of bounds."""
    inputs = make_inputs()
    locations, weights = inputs.geometry
    op = torch.ops.groundingml.ms_deform_attn
    with pytest.raises(RuntimeError, match=r"S = 62 rows.*got \(2, 83, 3, 8\)"):
        op(inputs.value, [7, 6, 4, 5], locations, weights)
    with pytest.raises(
        RuntimeError, match=r"attention_weights must have shape \(2, 13, 3, 2, 4\), got \(2, 13, 3, 2, 3\)"
    ):
        op(inputs.value, [7, 9, 4, 5], locations, weights[..., :3])
    with pytest.raises(RuntimeError, match="numbers"):
        op(inputs.value, [7, 9, 4], locations, weights)
    with pytest.raises(RuntimeError, match="positive"):
        op(inputs.value, [-7, -9, 4, 5], locations, weights)
    with pytest.raises(RuntimeError, match="value's dtype"):
        op(inputs.value, [7, 9, 4, 5], locations.double(), weights)
    with pytest.raises(RuntimeError, match="grad_output must have shape"):
        torch.ops.groundingml.ms_deform_attn_backward(
            torch.ones(2, 13, 23), inputs.value, [7, 9, 4, 5], locations, weights, False
        )
