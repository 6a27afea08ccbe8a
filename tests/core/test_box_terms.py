"""The box term's kinds: by hand, against literal forms, with gradients, and empty."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou

from sed.core.box_terms import UNIT, BoxTerm
from sed.core.boxes import giou
from sed.core.consistency import dense_consistency, region_consistency
from sed.core.matching import query_consistency
from sed.core.reweighting import mean
from sed.core.structures import QueryPrediction, RegionPrediction
from tests.reference import equations
from tests.reference.predictions import level_pairs, regions

CODER = (10.0, 10.0, 5.0, 5.0)
KINDS = ["l2", "l1", "giou"]


def literal_distance(kind, target, student, coder):
    """One pair of deltas, from some anchor that is not the unit square."""
    if kind != "giou":
        return sum(abs(t - s) ** (1 if kind == "l1" else 2) for t, s in zip(target, student, strict=True))
    boxes = []
    for dx, dy, dw, dh in (target, student):
        cx, cy = 30 + dx / coder[0] * 8, 40 + dy / coder[1] * 24  # an anchor 8 wide and 24 high
        w, h = 8 * torch.exp(dw / coder[2]), 24 * torch.exp(dh / coder[3])
        boxes.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    return 1 - equations.giou(*boxes)


def values_and_gradients(loss, inputs):
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return loss, [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads, strict=True)]


def test_by_hand():
    """The student's box is the target's moved by half its width: IoU 1/3, hull 1.5, GIoU 1/3."""
    target, student = torch.zeros(1, 4), torch.tensor([[0.5, 0, 0, 0]])
    assert BoxTerm("giou").of_deltas(target, student, UNIT, False).item() == pytest.approx(2 / 3)
    assert BoxTerm("giou").of_deltas(target, student * 10, CODER, False).item() == pytest.approx(2 / 3)
    # twice as wide about the same centre: IoU 1/2, hull = union
    wide = torch.tensor([[0.0, 0, math.log(2), 0]])
    assert BoxTerm("giou").of_deltas(target, wide, UNIT, False).item() == pytest.approx(0.5)
    # two boxes side by side, as far apart as they are wide: IoU 0, hull 3, union 2
    assert BoxTerm("giou").of_deltas(target, target + torch.tensor([2.0, 0, 0, 0]), UNIT, False).item() == (
        pytest.approx(4 / 3)
    )
    assert BoxTerm().of_deltas(target, torch.tensor([[1.0, 2, 0, 2]]), CODER, False).item() == 9
    assert BoxTerm("l1").of_deltas(target, torch.tensor([[1.0, -2, 0, 2]]), CODER, False).item() == 5
    centres = torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([[0.6, 0.5, 0.2, 0.2]])
    assert BoxTerm("giou").of_boxes(*centres, False).item() == pytest.approx(2 / 3)
    assert BoxTerm().of_boxes(*centres, False).item() == pytest.approx(0.01)


def test_giou_one_with_one_equals_torchvisions():
    torch.manual_seed(0)
    boxes = torch.rand(2, 9, 4, dtype=torch.float64)
    boxes[..., 2:] += boxes[..., :2]
    torch.testing.assert_close(giou(*boxes), generalized_box_iou(*boxes).diagonal())
    assert giou(boxes[0, :0], boxes[1, :0]).shape == (0,)
    one = torch.tensor([[0.0, 0, 0, 4]])  # without area: no NaN, in value or gradient
    one.requires_grad_()
    giou(one, one.detach()).sum().backward()
    assert one.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_dense_terms_equal_the_literal_form(kind, symmetric, classes):
    pairs = level_pairs(classes=classes)
    found = dense_consistency(pairs, mean(), symmetric, BoxTerm(kind), CODER).box
    distances = []
    for told, own in pairs:
        for n in range(told.logits.shape[0]):
            for a in range(told.logits.shape[1]):
                if not (told.valid[n, a] and own.valid[n, a]):
                    continue
                target = told.deltas[n, a] if symmetric else told.deltas[n, a].detach()
                distances.append(literal_distance(kind, target, own.deltas[n, a], CODER))
    slow = sum(distances) / max(len(distances), 1)
    assert 0 < len(distances)
    inputs = [side.deltas for pair in pairs for side in pair]
    for one, other in zip(values_and_gradients(found, inputs)[1], values_and_gradients(slow, inputs)[1], strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(found, slow)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
def test_region_terms_equal_the_literal_form(kind, symmetric, agnostic):
    told, own = regions(1, (14, 0, 15), agnostic=agnostic), regions(2, (14, 0, 15), agnostic=agnostic)
    found = region_consistency(told, own, mean(), symmetric, BoxTerm(kind), CODER).box
    total = 0.0
    for r in range(told.logits.shape[0]):
        p, q = told.logits[r].softmax(-1).detach(), own.logits[r].softmax(-1).detach()
        for c in range(3):
            column = 0 if agnostic else c
            target = told.deltas[r, column] if symmetric else told.deltas[r, column].detach()
            distance = literal_distance(kind, target, own.deltas[r, column], CODER)
            weight = float(p[c] + q[c]) / 2 if symmetric else float(p[c])
            total = total + weight * distance
    slow = total / told.logits.shape[0]
    assert slow > 0
    inputs = [told.deltas, own.deltas]
    for one, other in zip(values_and_gradients(found, inputs)[1], values_and_gradients(slow, inputs)[1], strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(found, slow)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("softmax", [False, True])
def test_query_terms_equal_the_literal_form(kind, softmax):
    torch.manual_seed(3)
    sides = [
        QueryPrediction(
            3 * torch.randn(2, 6, 4, dtype=torch.float64),
            torch.rand(2, 6, 4, dtype=torch.float64, requires_grad=True),
            softmax,
        )
        for _ in range(2)
    ]
    partners = torch.stack([torch.randperm(6) for _ in range(2)])
    found = query_consistency(*sides, partners, mean(), False, BoxTerm(kind)).box
    distances = []
    for n in range(2):
        for i in range(6):
            j = int(partners[n, i])
            a, b = sides[0].boxes[n, i].detach(), sides[1].boxes[n, j]
            corner = [(x[0] - x[2] / 2, x[1] - x[3] / 2, x[0] + x[2] / 2, x[1] + x[3] / 2) for x in (a, b)]
            distances.append(
                ((a - b).abs() ** (1 if kind == "l1" else 2)).sum() if kind != "giou" else 1 - equations.giou(*corner)
            )
    slow = sum(distances) / max(len(distances), 1)
    assert distances
    torch.testing.assert_close(found, slow)
    torch.testing.assert_close(
        torch.autograd.grad(found, sides[1].boxes)[0], torch.autograd.grad(slow, sides[1].boxes)[0]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_equal_predictions_cost_nothing(kind, symmetric):
    told = regions(1)
    own = RegionPrediction(told.logits, told.deltas.detach().requires_grad_(), told.counts)
    box = region_consistency(told, own, mean(), symmetric, BoxTerm(kind), CODER).box
    assert box.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_region_is_a_differentiable_zero(kind):
    told, own = regions(1, (0, 0)), regions(2, (0, 0))
    box = region_consistency(told, own, mean(), False, BoxTerm(kind), CODER).box
    assert box.item() == 0
    box.backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck(kind, symmetric):
    torch.manual_seed(0)
    target, student = (0.4 * torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    target, student = (x.detach().requires_grad_() for x in (target, student))
    form = BoxTerm(kind)
    assert torch.autograd.gradcheck(lambda s: form.of_deltas(target.detach(), s, (1, 1, 2, 2), symmetric), (student,))
    if symmetric:
        assert torch.autograd.gradcheck(lambda t, s: form.of_deltas(t, s, (1, 1, 2, 2), True), (target, student))


def test_huge_deltas_stay_finite():
    student = torch.tensor([[0.0, 0, 500, 500]], requires_grad=True)
    loss = BoxTerm("giou").of_deltas(torch.zeros(1, 4), student, UNIT, False).sum()
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected one of l2, l1, giou, got 'iou'"):
        BoxTerm("iou")
