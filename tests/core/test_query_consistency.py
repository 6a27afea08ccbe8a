"""Eq. 2 and Eq. 3 over matched queries (docs/method.md 5); the matching itself is in test_matching.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sed.core.matching import match_views, query_consistency
from sed.core.reweighting import histogram, make_reweight, mean
from sed.core.structures import QueryPrediction
from tests.reference import equations
from tests.reference import queries as literal
from tests.reference.queries import orders, random_queries, reorder

LITERAL = {
    "histogram": lambda kl, g: equations.equation_5(kl, g, 10),
    "none": equations.plain_mean,
    "ohem": lambda kl, g: equations.hard_examples(kl, g, 0.1),
    "focal": lambda kl, g: equations.focal_modulation(kl, g, 2.0),
}
KINDS = pytest.mark.parametrize("kind", sorted(LITERAL))
HEADS = pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "sigmoid"])
SIDES = pytest.mark.parametrize("symmetric", [True, False], ids=["eq2", "eq3"])


def reweight_of(kind):
    return make_reweight(kind, bins=10)


def two_views(softmax, seed=0, images=2, dtype=torch.float64):
    """Target, student and an assignment that is not the identity; 20 query pairs, 4 classes."""
    target, student = (
        random_queries(seed + i, images=images, count=10, classes=4, softmax=softmax, dtype=dtype) for i in (0, 1)
    )
    return target, student, orders(seed, images, 10)


def leaves(*views):
    return [tensor for view in views for tensor in (view.logits, view.boxes)]


def gradients(loss, inputs):
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True)]


def edited(view, edit):
    return replace(view, logits=edit(view.logits), boxes=edit(view.boxes))


# ---------------------------------------------------------------- by hand


def test_softmax_values_by_hand():
    """The first two targets of docs/method.md 10.2; the student has them in the other order."""
    target = QueryPrediction(
        torch.tensor([[[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]]], dtype=torch.float64).log(),
        torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.2, 0.1, 0.1]]], dtype=torch.float64),
        True,
    )
    student = QueryPrediction(
        torch.tensor([[[0.05, 0.05, 0.9], [0.5, 0.3, 0.2]]], dtype=torch.float64).log(),
        torch.tensor([[[0.1, 0.2, 0.1, 0.1], [0.6, 0.5, 0.2, 0.2]]], dtype=torch.float64),
        True,
    )
    partners = torch.tensor([[1, 0]])
    one_way = 0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    back = 0.5 * math.log(0.5 / 0.7) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.1)
    for symmetric, kl in ((False, one_way), (True, one_way + back)):
        loss = query_consistency(target, student, partners, mean(), symmetric)
        assert loss.cls.item() == pytest.approx(kl / 2, abs=1e-12)
        assert loss.box.item() == pytest.approx((0.1**2 + 0.2**2) / 2, abs=1e-12)  # mean over the two queries
        # g = .2 and 0: each alone in its bin
        loss = query_consistency(target, student, partners, histogram(10), symmetric)
        assert loss.cls.item() == pytest.approx(kl / 10, abs=1e-12)


def test_method_10_1_values_as_two_queries_of_two_sigmoid_classes():
    """Every class of a query is a sample of its own: KL = [.29282, 0, .00194, 0], bins [3, 0, 0, 0]."""
    boxes = torch.zeros(1, 2, 4, dtype=torch.float64)
    target = QueryPrediction(torch.tensor([[[0.90, 0.10], [0.02, 0.02]]], dtype=torch.float64).logit(), boxes, False)
    student = QueryPrediction(torch.tensor([[[0.55, 0.10], [0.03, 0.02]]], dtype=torch.float64).logit(), boxes, False)
    first = 0.9 * math.log(0.9 / 0.55) + 0.1 * math.log(0.1 / 0.45)
    third = 0.02 * math.log(0.02 / 0.03) + 0.98 * math.log(0.98 / 0.97)
    identity = torch.tensor([[0, 1]])
    loss = query_consistency(target, student, identity, histogram(10), False)
    assert loss.cls.item() == pytest.approx((first + third / 3) / 10, abs=1e-12)
    assert query_consistency(target, student, identity, mean(), False).cls.item() == pytest.approx(0.0737, abs=5e-5)
    assert loss.box.item() == 0.0


# ---------------------------------------------------------------- against loops


@KINDS
@SIDES
@HEADS
def test_values_and_gradients_equal_the_literal_form(softmax, symmetric, kind):
    target, student, partners = two_views(softmax)
    fast = query_consistency(target, student, partners, reweight_of(kind), symmetric)
    slow = literal.query_terms(target, student, partners.tolist(), LITERAL[kind], symmetric)
    inputs = leaves(target, student)
    for own, other in zip(fast, slow, strict=True):
        assert own.item() > 0
        torch.testing.assert_close(own, other)
        torch.testing.assert_close(gradients(own, inputs), gradients(other, inputs))


@SIDES
@HEADS
def test_the_target_has_a_gradient_in_equation_2_alone(softmax, symmetric):
    target, student, partners = two_views(softmax)
    loss = sum(query_consistency(target, student, partners, histogram(10), symmetric))
    found = gradients(loss, leaves(student, target))
    assert [bool(grad.abs().sum() > 0) for grad in found] == [True, True, symmetric, symmetric]


@pytest.mark.parametrize("kind", ["histogram", "none", "ohem"])
@HEADS
def test_gradcheck_of_equation_3(softmax, kind):
    """With respect to the student; by design the target has no gradient, and g of focal is a constant."""
    target, student, partners = two_views(softmax)

    def losses(logits, boxes):
        view = QueryPrediction(logits, boxes, softmax)
        return tuple(query_consistency(target, view, partners, reweight_of(kind), False))

    assert torch.autograd.gradcheck(losses, (student.logits, student.boxes))


@HEADS
def test_gradcheck_of_equation_2_s_box_term_for_both_views(softmax):
    target, student, partners = two_views(softmax)

    def box(own, other):
        pair = (replace(target, boxes=own), replace(student, boxes=other))
        return query_consistency(*pair, partners, mean(), True).box

    assert torch.autograd.gradcheck(box, (target.boxes, student.boxes))


@pytest.mark.parametrize("kind", ["histogram", "none", "focal"])
@HEADS
def test_equation_2_s_gradient_is_that_of_equation_3_in_each_direction(softmax, kind):
    """D(sg P || P^) + D(sg P^ || P): each prediction learns from the other as a constant, with one histogram."""
    target, student, partners = two_views(softmax)
    both = query_consistency(target, student, partners, reweight_of(kind), True).cls
    forth = query_consistency(target, student, partners, reweight_of(kind), False).cls
    back = query_consistency(student, target, partners.argsort(1), reweight_of(kind), False).cls
    torch.testing.assert_close(both, forth + back)
    found = gradients(both, [target.logits, student.logits])
    torch.testing.assert_close(found, gradients(back, [target.logits]) + gradients(forth, [student.logits]))


# ---------------------------------------------------------------- limits


@KINDS
@SIDES
@HEADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_predictions_have_zero_loss_and_zero_gradient(softmax, symmetric, kind, dtype):
    """Exactly, also where the matching has to undo another order of the student's queries."""
    target, _, order = two_views(softmax, dtype=dtype)
    student = edited(reorder(target, order), lambda x: x.detach().requires_grad_())
    (partners,) = match_views([(target, student)])
    assert torch.equal(partners, order.argsort(1))
    loss = query_consistency(target, student, partners, reweight_of(kind), symmetric)
    assert [value.item() for value in loss] == [0.0, 0.0]
    for grad in gradients(sum(loss), leaves(target, student)):
        assert torch.equal(grad, torch.zeros_like(grad))
    wrong = query_consistency(target, student, partners.roll(1, 1), reweight_of(kind), symmetric)
    assert all(value.item() > 0 for value in wrong)


@KINDS
@HEADS
def test_swapping_the_views_leaves_equation_2_s_value(softmax, kind):
    target, student, partners = two_views(softmax)
    back = partners.argsort(1)
    for symmetric in (True, False):
        one = query_consistency(target, student, partners, reweight_of(kind), symmetric)
        other = query_consistency(student, target, back, reweight_of(kind), symmetric)
        assert (one.cls.item() == pytest.approx(other.cls.item(), rel=1e-9)) == symmetric
        torch.testing.assert_close(one.box, other.box)


@KINDS
@SIDES
@HEADS
def test_the_order_of_queries_changes_nothing(softmax, symmetric, kind):
    target, student, partners = two_views(softmax)
    expected = query_consistency(target, student, partners, reweight_of(kind), symmetric)
    source = torch.Generator().manual_seed(9)
    p, q = (torch.randperm(10, generator=source) for _ in range(2))
    shuffled = (edited(target, lambda x: x[:, p]), edited(student, lambda x: x[:, q]))
    found = query_consistency(*shuffled, q.argsort()[partners[:, p]], reweight_of(kind), symmetric)
    torch.testing.assert_close(found, expected)
    inputs = leaves(target, student)
    torch.testing.assert_close(gradients(sum(found), inputs), gradients(sum(expected), inputs))


@KINDS
@SIDES
@HEADS
def test_doubled_images_change_nothing(softmax, symmetric, kind):
    target, student, partners = two_views(softmax)
    expected = query_consistency(target, student, partners, reweight_of(kind), symmetric)
    twice = [edited(view, lambda x: torch.cat([x, x])) for view in (target, student)]
    found = query_consistency(*twice, torch.cat([partners, partners]), reweight_of(kind), symmetric)
    torch.testing.assert_close(found, expected)


@SIDES
@HEADS
def test_one_histogram_spans_all_images(softmax, symmetric):
    target, student, partners = two_views(softmax)
    calls = []

    def spy(kl, g, mask):
        calls.append((tuple(kl.shape), bool(mask.all())))
        return histogram(10)(kl, g, mask)

    together = query_consistency(target, student, partners, spy, symmetric).cls
    assert calls == [((2, 10), True) if softmax else ((2, 10, 4), True)]
    apart = [
        query_consistency(
            edited(target, lambda x, n=n: x[n : n + 1]),
            edited(student, lambda x, n=n: x[n : n + 1]),
            partners[n : n + 1],
            histogram(10),
            symmetric,
        ).cls
        for n in (0, 1)
    ]
    assert together.item() != pytest.approx(sum(apart).item() / 2, rel=1e-3)


@KINDS
@SIDES
@HEADS
def test_no_image_is_a_differentiable_zero(softmax, symmetric, kind):
    target, student = (random_queries(seed, images=0, softmax=softmax) for seed in (0, 1))
    (partners,) = match_views([(target, student)])
    loss = query_consistency(target, student, partners, reweight_of(kind), symmetric)
    assert [value.item() for value in loss] == [0.0, 0.0]
    sum(loss).backward()
    assert student.logits.grad.shape == student.logits.shape
    assert student.boxes.grad.shape == (0, 4, 4)


# ---------------------------------------------------------------- numbers and devices


@HEADS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_compared_in_float32(softmax, dtype):
    target, student, partners = two_views(softmax, dtype=dtype)
    exact = [edited(view, lambda x: x.detach().float()) for view in (target, student)]
    with torch.autocast("cpu", dtype=dtype):
        loss = query_consistency(target, student, partners, histogram(10), True)
    assert loss.cls.dtype == loss.box.dtype == torch.float32
    torch.testing.assert_close(loss, query_consistency(*exact, partners, histogram(10), True))
    for grad, tensor in zip(gradients(sum(loss), leaves(student)), leaves(student), strict=True):
        assert grad.dtype == tensor.dtype
        assert torch.isfinite(grad).all()
        assert grad.abs().sum() > 0


@KINDS
@SIDES
@HEADS
def test_no_loss_waits_for_the_device(softmax, symmetric, kind):
    """Tensors on "meta" have shapes and no values: code that reads one back fails."""
    target, student, partners = two_views(softmax)
    target, student = (edited(v, lambda x: x.detach().to("meta").requires_grad_()) for v in (target, student))
    loss = sum(query_consistency(target, student, partners.to("meta"), reweight_of(kind), symmetric))
    loss.backward()
    assert loss.is_meta
    assert student.logits.grad.is_meta
    assert (target.boxes.grad is not None) == symmetric
