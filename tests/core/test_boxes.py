import math

import pytest
import torch

from sed.core.boxes import area, clip_boxes, corners, flip_boxes, giou_matrix, iou_matrix, scale_boxes
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


MATRICES = pytest.mark.parametrize("matrix", [iou_matrix, giou_matrix])


@MATRICES
@pytest.mark.parametrize("leading", [(3,), (1,), (2, 3)])
def test_batched_matrices_equal_image_by_image(matrix, leading):
    images = math.prod(leading)
    a = torch.stack([boxes(10 + n, 6) for n in range(images)])
    b = torch.stack([boxes(20 + n, 4) for n in range(images)])
    together = matrix(a.view(*leading, 6, 4), b.view(*leading, 4, 4))
    assert together.shape == (*leading, 6, 4)
    assert torch.equal(together.flatten(0, -3), torch.stack([matrix(*pair) for pair in zip(a, b, strict=True)]))
    assert torch.equal(area(a), torch.stack([area(x) for x in a]))


@MATRICES
def test_batches_without_images_or_boxes(matrix):
    assert matrix(torch.zeros(0, 3, 4), torch.zeros(0, 5, 4)).shape == (0, 3, 5)
    assert matrix(torch.zeros(2, 0, 4), torch.zeros(2, 5, 4)).shape == (2, 0, 5)
    assert matrix(torch.zeros(2, 3, 4), torch.zeros(2, 0, 4)).shape == (2, 3, 0)


@MATRICES
def test_batched_gradients(matrix):
    wide = torch.tensor([0.2, 0.2, 1, 1], dtype=torch.float64)  # so that they overlap
    a = (torch.stack([boxes(30, 3), boxes(31, 3)]) * wide).requires_grad_()
    b = (torch.stack([boxes(32, 2), boxes(33, 2)]) * wide).requires_grad_()
    assert torch.autograd.gradcheck(matrix, (a, b))
    for n in (0, 1):  # an image's overlaps move its own boxes alone
        found = torch.autograd.grad(matrix(a, b)[n].sum(), (a, b))
        assert [(grad[n].abs().sum() > 0).item() for grad in found] == [True, True]
        assert all(torch.equal(grad[1 - n], torch.zeros_like(grad[n])) for grad in found)


def test_batched_boxes_without_area():
    """A point, a line, boxes whose corners have changed places, and a good box: every value in range, by hand."""
    good = [10.0, 10, 20, 20]
    odd = torch.tensor([[[12.0, 12, 12, 12], [10, 10, 20, 10], [20, 20, 10, 10], good], [good] * 4])
    odd.requires_grad_()
    other = torch.tensor([[good, [30.0, 30, 30, 30]], [good, [10, 10, 20, 30]]])
    # inside the good box: nothing shared, no hull beyond it; with a far point: nothing but hull, or 3/4 of it
    expected = [[[0, -1], [0, -1], [0, -1], [1, -3 / 4]], [[1, 0.5]] * 4]
    found = giou_matrix(odd, other)
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(iou_matrix(odd, other), torch.tensor([[[0.0, 0]] * 3 + [[1, 0]], [[1, 0.5]] * 4]))
    (grad,) = torch.autograd.grad(found.sum() + iou_matrix(odd, other).sum(), odd)
    assert torch.isfinite(grad).all()


def test_giou_is_the_same_in_fractions_of_any_frame():
    a, b = boxes(40, 5), boxes(41, 5)
    frame = torch.tensor([640.0, 96, 640, 96], dtype=torch.float64)
    torch.testing.assert_close(giou_matrix(a / frame, b / frame), giou_matrix(a, b))


def test_corners_of_centre_and_size():
    found = corners(torch.tensor([[[0.5, 0.25, 0.2, 0.5]], [[3.0, 4, 6, 0]]]))
    torch.testing.assert_close(found, torch.tensor([[[0.4, 0.0, 0.6, 0.5]], [[0.0, 4, 6, 4]]]))
    xyxy = boxes(50, 9).view(3, 3, 4)
    low, high = xyxy[..., :2], xyxy[..., 2:]
    torch.testing.assert_close(corners(torch.cat([(low + high) / 2, high - low], -1)), xyxy)
    assert corners(torch.zeros(2, 0, 4)).shape == (2, 0, 4)
    assert torch.autograd.gradcheck(corners, (boxes(51, 2).requires_grad_(),))


def test_scale_clip_and_flip():
    assert torch.equal(scale_boxes(HAND, 0.5), HAND / 2)
    assert torch.equal(scale_boxes(scale_boxes(HAND, 2.0), 0.5), HAND)
    clipped = clip_boxes(torch.tensor([[-5.0, -5, 50, 50], [30, 3, 40, 8]]), (10, 20))
    assert clipped.tolist() == [[0, 0, 20, 10], [20, 3, 20, 8]]
    assert flip_boxes(HAND[3:], 100).tolist() == [[90, 0, 100, 5]]
    assert torch.equal(flip_boxes(flip_boxes(HAND, 64), 64), HAND)
