"""Alg. 1 (docs/method.md 5): the cost and the assignment. What a call takes and costs: test_match_views.py. The terms
on the matched pairs: test_query_consistency.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sed.core.matching import match_cost, match_views, query_consistency
from sed.core.reweighting import mean
from sed.core.structures import QueryPrediction
from tests.reference import queries as literal
from tests.reference.queries import nearly, orders, random_queries, reorder

HEADS = pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "sigmoid"])
NAN, INF = float("nan"), float("inf")


def from_probabilities(rows, boxes, softmax=True, frame=(1.0, 1.0)):
    """One image; boxes (x0, y0, x1, y1) in pixels of `frame` (width, height)."""
    p = torch.tensor([rows], dtype=torch.float64)
    xyxy = torch.tensor([boxes], dtype=torch.float64) / torch.tensor([*frame, *frame])
    cxcywh = torch.cat([(xyxy[..., :2] + xyxy[..., 2:]) / 2, xyxy[..., 2:] - xyxy[..., :2]], -1)
    return QueryPrediction(p.log() if softmax else p.logit(), cxcywh, softmax)


def match(one, other, weight=1.0):
    (partners,) = match_views([(one, other)], weight)
    return partners


def is_permutation(partners):
    every = torch.arange(partners.shape[1]).expand_as(partners)
    return torch.equal(partners.sort(1).values, every)


# ---------------------------------------------------------------- docs/method.md 10


@pytest.mark.parametrize("frame", [(40.0, 40.0), (100.0, 31.0)])
def test_method_10_5_values(frame):
    """The boxes are printed in pixels; GIoU is the same in fractions of any frame."""
    one = from_probabilities(
        [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]],
        [(0, 0, 10, 10), (20, 20, 30, 30), (0, 20, 10, 30)],
        frame=frame,
    )
    other = from_probabilities(
        [[0.1, 0.7, 0.2], [0.15, 0.15, 0.7], [0.7, 0.2, 0.1]],
        [(21, 20, 31, 30), (0, 21, 10, 31), (0, 0, 9, 10)],
        frame=frame,
    )
    printed = torch.tensor([[2.0749, 1.6060, 0.1102], [0.1920, 1.6451, 2.0118], [1.5778, 0.1885, 1.6567]])
    torch.testing.assert_close(match_cost(one, other)[0], printed.double(), atol=5.1e-5, rtol=0)
    assert match(one, other).tolist() == [[2, 0, 1]]


def test_method_10_5_divergence():
    box = [(0, 0, 1, 1)]
    one, other = from_probabilities([[0.7, 0.2, 0.1]], box), from_probabilities([[0.5, 0.3, 0.2]], box)
    assert match_cost(one, other).item() == pytest.approx(0.0219, abs=5e-5)  # equal boxes: JS alone


def test_sigmoid_divergence_by_hand():
    """The sum over classes of JS([p, 1 - p], [q, 1 - q]).

    .9, .5: m = .7, (.9 ln .9/.7 + .1 ln .1/.3 + .5 ln .5/.7 + .5 ln .5/.3) / 2 = (.1163218 + .0871767) / 2 = .1017492
    .2, .6: m = .4, (.2 ln .2/.4 + .8 ln .8/.6 + .6 ln .6/.4 + .4 ln .4/.6) / 2 = (.0915162 + .0810930) / 2 = .0863046
    """
    box = [(0, 0, 1, 1)]
    one, other = from_probabilities([[0.9, 0.2]], box, False), from_probabilities([[0.5, 0.6]], box, False)
    assert match_cost(one, other).item() == pytest.approx(0.1017492 + 0.0863046, abs=2e-7)


@HEADS
def test_divergence_is_log_2_at_most_for_a_distribution(softmax):
    """Opposite predictions with probability 1: ln 2; for a sigmoid head ln 2 for every class that differs."""
    box = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]], dtype=torch.float64)
    one = QueryPrediction(torch.tensor([[[80.0, -80, -80]]], dtype=torch.float64), box, softmax)
    other = QueryPrediction(torch.tensor([[[-80.0, 80, -80]]], dtype=torch.float64), box, softmax)
    assert match_cost(one, other).item() == pytest.approx(math.log(2) * (1 if softmax else 2))


# ---------------------------------------------------------------- against loops


@HEADS
@pytest.mark.parametrize("weight", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_cost_equals_the_literal_form(softmax, weight, seed):
    one, other = (random_queries(seed + 10 * i, images=2, count=5, softmax=softmax) for i in (0, 1))
    cost = match_cost(one, other, weight)
    assert cost.shape == (2, 5, 5)
    torch.testing.assert_close(cost, literal.match_cost(one, other, weight), rtol=1e-10, atol=1e-12)


@HEADS
@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("seed", range(4))
def test_assignment_equals_a_search_over_all_permutations(softmax, count, seed):
    one, other = (random_queries(seed + 10 * i, images=2, count=count, softmax=softmax) for i in (1, 2))
    cost = literal.match_cost(one, other)
    assert match(one, other).tolist() == [literal.best_permutation(c.tolist()) for c in cost]


def test_the_assignment_minimises_the_total_cost_not_that_of_each_row():
    """Column 0 is the cheapest for both rows; row 1 gets it, because its other column costs more."""
    box = [(0, 0, 1, 1)] * 2
    one = from_probabilities([[0.75, 0.25], [0.9, 0.1]], box)
    other = from_probabilities([[0.9, 0.1], [0.3, 0.7]], box)
    assert match_cost(one, other)[0].argmin(1).tolist() == [0, 0]
    assert match(one, other).tolist() == [[1, 0]]


# ---------------------------------------------------------------- symmetries


@HEADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_views_match_themselves(softmax, dtype):
    view = random_queries(3, images=3, count=50, softmax=softmax, dtype=dtype)
    cost = match_cost(view, view)
    torch.testing.assert_close(cost.diagonal(dim1=1, dim2=2), torch.zeros(3, 50, dtype=dtype), atol=2e-6, rtol=0)
    assert match(view, view).tolist() == [list(range(50))] * 3


@HEADS
def test_permuted_queries_permute_the_assignment_and_keep_the_pairs(softmax):
    one, other = (random_queries(seed, images=3, count=6, softmax=softmax) for seed in (4, 5))
    before = match(one, other)
    p, q = orders(1, 3, 6), orders(2, 3, 6)
    after = match(reorder(one, p), reorder(other, q))
    # row i of the new view is row p[i] of the old one, and its partner is the same query
    assert torch.equal(q.gather(1, after), before.gather(1, p))
    torch.testing.assert_close(match(reorder(one, p), other), before.gather(1, p))
    torch.testing.assert_close(match(one, reorder(other, q)), q.argsort(1).gather(1, before))


@HEADS
def test_swapped_views_have_the_inverse_assignment(softmax):
    one, other = (random_queries(seed, images=2, count=6, softmax=softmax) for seed in (6, 7))
    torch.testing.assert_close(match_cost(other, one), match_cost(one, other).transpose(1, 2))
    assert torch.equal(match(other, one), match(one, other).argsort(1))


@HEADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_queries_find_themselves_in_another_view(softmax, dtype):
    one = random_queries(8, images=2, count=100, classes=5, softmax=softmax, dtype=dtype)
    order = orders(3, 2, 100)
    other = reorder(nearly(one, 9), order)
    assert torch.equal(match(one, other), order.argsort(1))


# ---------------------------------------------------------------- lambda


@HEADS
def test_lambda_0_matches_by_classes_alone_and_a_large_lambda_by_boxes_alone(softmax):
    one = random_queries(10, count=6, softmax=softmax)
    classes, places = orders(4, 2, 6), orders(5, 2, 6)
    other = replace(reorder(one, classes), boxes=reorder(one, places).boxes)
    assert not torch.equal(classes, places)
    assert torch.equal(match(one, other, 0.0), classes.argsort(1))
    for weight in (1e3, 1e6):
        assert torch.equal(match(one, other, weight), places.argsort(1))


@HEADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_without_any_confident_query_match_by_their_boxes(softmax, dtype):
    """All "no object", or all sigmoids near 0: the classes carry no information."""
    one = random_queries(11, images=2, count=20, softmax=softmax, dtype=dtype)
    with torch.no_grad():
        one.logits.mul_(0.1)
        (one.logits[..., -1] if softmax else one.logits).add_(30 if softmax else -30)
    order = orders(6, 2, 20)
    other = reorder(nearly(one, 12), order)
    partners = match(one, other)
    assert torch.equal(partners, order.argsort(1))
    other.logits.requires_grad_()
    loss = query_consistency(one, other, partners, mean(), False)
    assert abs(loss.cls.item()) < 1e-9
    assert 0 < loss.box.item() < 1e-4
    (grad,) = torch.autograd.grad(loss.cls, other.logits)
    assert torch.isfinite(grad).all()


# ---------------------------------------------------------------- NaN and infinity


@HEADS
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["logits", "boxes"])
@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)])
def test_queries_with_nan_leave_the_others_their_partners(softmax, bad, where, sides):
    one = random_queries(13, images=2, count=30, softmax=softmax, dtype=torch.float32)
    order = orders(7, 2, 30)
    views = [one, reorder(nearly(one, 14), order)]
    expected = order.argsort(1)
    lost = torch.zeros(30, dtype=torch.bool)  # queries of `one` that cannot have their partner
    for side in sides:
        ruined = [3 + 10 * side, 8]  # of image 0
        values = getattr(views[side], where).detach().clone()
        values[0, ruined] = bad
        views[side] = replace(views[side], **{where: values})
        lost[ruined if side == 0 else order[0, ruined]] = True
    partners = match(*views)
    assert is_permutation(partners)
    assert torch.equal(partners[1], expected[1])
    if where == "boxes" or softmax or math.isnan(bad):
        assert torch.equal(partners[0][~lost], expected[0][~lost])
        loss = sum(query_consistency(*views, partners, mean(), False))
        assert not torch.isfinite(loss)
    else:  # a sigmoid of infinity is 0 or 1, a valid probability
        assert torch.isfinite(match_cost(*views)).all()


@HEADS
@pytest.mark.parametrize("seed", range(3))
def test_the_other_queries_are_matched_as_if_those_with_nan_were_absent(softmax, seed):
    """One query with NaN in each view: they are matched with each other, so that no good pair is lost."""
    one, other = (random_queries(seed + 10 * i, images=1, count=6, softmax=softmax) for i in (1, 2))
    expected = torch.full((6,), 4)
    left = torch.tensor([0, 1, 3, 4, 5])  # without query 2 of the first view and 4 of the second
    right = torch.tensor([0, 1, 2, 3, 5])
    cost = literal.match_cost(one, other)[0][left][:, right]
    expected[left] = right[literal.best_permutation(cost.tolist())]
    with torch.no_grad():
        one.logits[0, 2] = NAN
        other.boxes[0, 4] = INF
    assert match(one, other).tolist() == [expected.tolist()]


def test_an_image_of_nothing_but_nan_still_has_an_assignment():
    one = random_queries(15, images=2, count=5)
    broken = replace(one, logits=torch.full_like(one.logits, NAN), boxes=torch.full_like(one.boxes, NAN))
    assert is_permutation(match(one, broken))
    assert is_permutation(match(broken, broken))


@HEADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_logits_have_finite_costs(softmax, dtype):
    values = torch.tensor([[1e4, -1e4, 0, -1e4], [-1e4, -1e4, -1e4, -1e4], [-1e4, 1e4, 0, 1e4], [0, 0, 0, 1e4]])
    boxes = random_queries(16, images=1, count=4).boxes.detach().float()
    view = QueryPrediction(values[None].to(dtype), boxes, softmax)
    cost = match_cost(view, view)
    assert torch.isfinite(cost).all()
    assert cost.min() > -1e-6
    assert match(view, view).tolist() == [[0, 1, 2, 3]]
    loss = sum(query_consistency(view, reorder(view, torch.tensor([[2, 3, 0, 1]])), match(view, view), mean(), True))
    assert torch.isfinite(loss)
