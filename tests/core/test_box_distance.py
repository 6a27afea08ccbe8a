"""The box term's distances: by hand, against literal forms, with gradients, and empty."""

from __future__ import annotations

import pytest
import torch

from sed.core.consistency import absolute_error, box_distance, dense_consistency, region_consistency, squared_error
from sed.core.matching import query_consistency
from sed.core.reweighting import mean
from sed.core.structures import QueryPrediction, RegionPrediction
from tests.reference.predictions import level_pairs, regions

KINDS = {"squared": squared_error, "absolute": absolute_error}


def literal_distance(kind, target, student):
    """One pair of four numbers."""
    return sum(abs(t - s) ** (1 if kind == "absolute" else 2) for t, s in zip(target, student, strict=True))


def values_and_gradients(loss, inputs):
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return loss, [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads, strict=True)]


def test_by_hand():
    target, student = torch.zeros(1, 4), torch.tensor([[1.0, -2, 0, 2]])
    assert squared_error(target, student).item() == 9
    assert absolute_error(target, student).item() == 5
    assert box_distance(target, student, False).item() == 9  # the paper's


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype):
    target, student = torch.full((2, 4), 300.0, dtype=dtype), torch.zeros(2, 4, dtype=dtype)
    found = box_distance(target, student, True)
    assert found.dtype == torch.float32
    assert found.tolist() == [360000.0, 360000.0]  # more than float16 holds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_dense_terms_equal_the_literal_form(kind, symmetric, classes):
    pairs = level_pairs(classes=classes)
    found = dense_consistency(pairs, mean(), symmetric, KINDS[kind]).box
    distances = []
    for target_side, own in pairs:
        for n in range(target_side.logits.shape[0]):
            for a in range(target_side.logits.shape[1]):
                if not (target_side.valid[n, a] and own.valid[n, a]):
                    continue
                target = target_side.deltas[n, a] if symmetric else target_side.deltas[n, a].detach()
                distances.append(literal_distance(kind, target, own.deltas[n, a]))
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
    target_side, own = regions(1, (14, 0, 15), agnostic=agnostic), regions(2, (14, 0, 15), agnostic=agnostic)
    found = region_consistency(target_side, own, mean(), symmetric, KINDS[kind]).box
    total = 0.0
    for r in range(target_side.logits.shape[0]):
        p, q = target_side.logits[r].softmax(-1).detach(), own.logits[r].softmax(-1).detach()
        for c in range(3):
            column = 0 if agnostic else c
            target = target_side.deltas[r, column] if symmetric else target_side.deltas[r, column].detach()
            distance = literal_distance(kind, target, own.deltas[r, column])
            weight = float(p[c] + q[c]) / 2 if symmetric else float(p[c])
            total = total + weight * distance
    slow = total / target_side.logits.shape[0]
    assert slow > 0
    inputs = [target_side.deltas, own.deltas]
    for one, other in zip(values_and_gradients(found, inputs)[1], values_and_gradients(slow, inputs)[1], strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(found, slow)


@pytest.mark.parametrize("softmax", [False, True])
def test_query_terms_equal_the_literal_form(softmax):
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
    found = query_consistency(*sides, partners, mean(), False).box
    distances = []
    for n in range(2):
        for i in range(6):
            j = int(partners[n, i])
            a, b = sides[0].boxes[n, i].detach(), sides[1].boxes[n, j]
            distances.append(literal_distance("squared", a, b))
    slow = sum(distances) / max(len(distances), 1)
    assert distances
    torch.testing.assert_close(found, slow)
    torch.testing.assert_close(
        torch.autograd.grad(found, sides[1].boxes)[0], torch.autograd.grad(slow, sides[1].boxes)[0]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_equal_predictions_have_zero_loss(kind, symmetric):
    target_side = regions(1)
    own = RegionPrediction(target_side.logits, target_side.deltas.detach().requires_grad_(), target_side.counts)
    box = region_consistency(target_side, own, mean(), symmetric, KINDS[kind]).box
    assert box.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_region_is_a_differentiable_zero(kind):
    target_side, own = regions(1, (0, 0)), regions(2, (0, 0))
    box = region_consistency(target_side, own, mean(), False, KINDS[kind]).box
    assert box.item() == 0
    box.backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck(kind, symmetric):
    torch.manual_seed(0)
    target, student = (torch.randn(5, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    form = KINDS[kind]
    assert torch.autograd.gradcheck(lambda s: box_distance(target.detach(), s, symmetric, form), (student,))
    if symmetric:
        assert torch.autograd.gradcheck(lambda t, s: box_distance(t, s, True, form), (target, student))
    else:
        box_distance(target, student, False, form).sum().backward()
        assert target.grad is None
