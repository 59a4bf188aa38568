"""Box arithmetic against values worked out by hand."""

import pytest
import torch

from groundingml.training.boxes import cxcywh_to_xyxy, generalized_iou, inverse_sigmoid, xyxy_to_cxcywh


def test_conversions_are_inverse_and_right() -> None:
    centred = torch.tensor([[0.5, 0.25, 0.2, 0.1]])
    corners = torch.tensor([[0.4, 0.2, 0.6, 0.3]])
    torch.testing.assert_close(cxcywh_to_xyxy(centred), corners)
    torch.testing.assert_close(xyxy_to_cxcywh(corners), centred)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param([0, 0, 2, 2], [0, 0, 2, 2], 1.0, id="equal boxes"),
        # areas 4 and 4, overlap 1, union 7, hull 9: 1/7 - 2/9
        pytest.param([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7 - 2 / 9, id="overlap"),
        # overlap 0, union 2, hull 3 x 1: 0 - 1/3
        pytest.param([0, 0, 1, 1], [2, 0, 3, 1], -1 / 3, id="apart"),
        # inside: overlap 1, union 16, hull 16
        pytest.param([0, 0, 4, 4], [1, 1, 2, 2], 1 / 16, id="inside"),
        # no area on either side of x = 1: overlap 0, union 1, hull 1
        pytest.param([0, 0, 1, 1], [1, 0, 1, 1], 0.0, id="empty box at the edge"),
    ],
)
def test_generalized_iou_by_hand(a: list[float], b: list[float], expected: float) -> None:
    result = generalized_iou(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    assert result.item() == pytest.approx(expected, abs=1e-12)


def test_generalized_iou_is_pairwise_by_broadcasting_and_differentiable() -> None:
    a = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]], requires_grad=True)
    b = torch.tensor([[0.0, 0, 1, 1], [1, 1, 3, 3], [5, 5, 6, 6]])
    result = generalized_iou(a[:, None], b[None])
    assert result.shape == (2, 3)
    result.sum().backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()
    assert a.grad.abs().sum() > 0


def test_generalized_iou_has_finite_gradients_for_points() -> None:
    point = torch.tensor([0.5, 0.5, 0.5, 0.5], requires_grad=True)
    generalized_iou(point, torch.tensor([0.5, 0.5, 0.5, 0.5])).backward()
    assert point.grad is not None
    assert torch.isfinite(point.grad).all()


def test_inverse_sigmoid_inverts_inside_and_is_bounded_at_the_ends() -> None:
    inside = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(inverse_sigmoid(inside).sigmoid(), inside)
    # at 0: log(0.001 / 1), at 1: log(1 / 0.001)
    torch.testing.assert_close(inverse_sigmoid(torch.tensor([0.0, 1.0])), torch.tensor([-6.907755, 6.907755]))
