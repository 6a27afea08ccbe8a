import pytest
import torch

from sed.core.boxes import area, clip_boxes, flip_boxes, giou_matrix, iou_matrix, scale_boxes
from tests.reference import equations

HAND = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 5]])


def boxes(seed, count):
    source = torch.Generator().manual_seed(seed)
    corner = 50 * torch.rand(count, 2, generator=source, dtype=torch.float64)
    return torch.cat([corner, corner + 30 * torch.rand(count, 2, generator=source, dtype=torch.float64)], 1)


def test_hand_worked_values():
    assert area(HAND).tolist() == [100, 100, 100, 50]
    assert iou_matrix(HAND[:1], HAND).tolist() == [pytest.approx([1, 1 / 3, 0, 0.5])]
    # box 0 and 2: union 200, hull 900
    assert giou_matrix(HAND[:1], HAND).tolist() == [pytest.approx([1, 1 / 3, -700 / 900, 0.5])]


@pytest.mark.parametrize("name", ["iou", "giou"])
def test_matrices_equal_the_literal_form(name):
    a, b = boxes(0, 7), boxes(1, 5)
    fast = {"iou": iou_matrix, "giou": giou_matrix}[name](a, b)
    slow = [[getattr(equations, name)(x.tolist(), y.tolist()) for y in b] for x in a]
    torch.testing.assert_close(fast, torch.tensor(slow, dtype=torch.float64))


def test_giou_gradient():
    assert torch.autograd.gradcheck(giou_matrix, (boxes(2, 3).requires_grad_(), boxes(3, 3).requires_grad_()))


def test_no_boxes_and_boxes_without_area():
    assert iou_matrix(HAND[:0], HAND).shape == (0, 4)
    assert giou_matrix(HAND, HAND[:0]).shape == (4, 0)
    point = torch.tensor([[3.0, 3, 3, 3]], requires_grad=True)
    for matrix in (iou_matrix(point, point), giou_matrix(point, point)):
        assert matrix.tolist() == [[0.0]]
        (grad,) = torch.autograd.grad(matrix.sum(), point)
        assert torch.isfinite(grad).all()


def test_scale_clip_and_flip():
    assert torch.equal(scale_boxes(HAND, 0.5), HAND / 2)
    assert torch.equal(scale_boxes(scale_boxes(HAND, 2.0), 0.5), HAND)
    clipped = clip_boxes(torch.tensor([[-5.0, -5, 50, 50], [30, 3, 40, 8]]), (10, 20))
    assert clipped.tolist() == [[0, 0, 20, 10], [20, 3, 20, 8]]
    assert flip_boxes(HAND[3:], 100).tolist() == [[90, 0, 100, 5]]
    assert torch.equal(flip_boxes(flip_boxes(HAND, 64), 64), HAND)
