"""Alg. 1 as a step calls it: errors, all pairs at once, devices, dtypes, memory. Its values: test_matching.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sed.core.matching import match_cost, match_views, query_consistency
from sed.core.reweighting import mean
from tests.reference.queries import nearly, orders, random_queries, reorder

HEADS = pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "sigmoid"])


def match(one, other, weight=1.0):
    (partners,) = match_views([(one, other)], weight)
    return partners


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "shape"),
    [({"count": 5}, r"\(2, 5, 4\)"), ({"images": 3}, r"\(3, 4, 4\)"), ({"classes": 7}, r"\(2, 4, 8\)")],
)
def test_views_of_unequal_shapes_are_refused(change, shape):
    one, other = random_queries(0), random_queries(1, **change)
    partners = torch.arange(4).expand(2, 4)
    for call in (
        lambda a, b: match_cost(a, b),
        lambda a, b: match_views([(a, b)]),
        lambda a, b: match_views([(one, one), (a, b)]),
        lambda a, b: query_consistency(a, b, partners, mean(), False),
    ):
        with pytest.raises(ValueError, match=r"\(2, 4, 4\).*" + shape):
            call(one, other)
        with pytest.raises(ValueError, match=shape + r".*\(2, 4, 4\)"):
            call(other, one)


def test_softmax_and_sigmoid_views_are_not_compared():
    one, other = random_queries(0, classes=3), random_queries(1, classes=4, softmax=False)
    assert one.logits.shape == other.logits.shape
    for call in (match_cost, lambda a, b: match_views([(a, b)])):
        with pytest.raises(ValueError, match=r"softmax True.*softmax False"):
            call(one, other)
    with pytest.raises(ValueError, match=r"softmax False.*softmax True"):
        query_consistency(other, one, torch.arange(4).expand(2, 4), mean(), False)


# ---------------------------------------------------------------- a step's pairs together


@HEADS
def test_pairs_together_equal_pairs_alone(softmax):
    views = [random_queries(20 + i, images=n, softmax=softmax) for i, n in enumerate((2, 2, 1, 1, 3, 3))]
    pairs = list(zip(views[::2], views[1::2], strict=True))
    together = match_views(pairs, 0.7)
    assert [t.shape for t in together] == [(2, 4), (1, 4), (3, 4)]
    for found, (one, other) in zip(together, pairs, strict=True):
        assert torch.equal(found, match(one, other, 0.7))
        assert found.dtype == torch.int64


def test_one_transfer_serves_all_pairs(monkeypatch):
    """`.cpu()` waits for the device and is called once; the others would wait too and are not called."""
    seen = dict.fromkeys(("cpu", "item", "tolist", "__bool__", "__float__", "__int__"), 0)
    pairs = [tuple(random_queries(30 + 2 * i + j) for j in (0, 1)) for i in range(3)]
    for name in seen:
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            seen[name] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    found = match_views(pairs)
    assert [t.shape for t in found] == [(2, 4)] * 3
    assert {name: count for name, count in seen.items() if count} == {"cpu": 1}


def test_the_cost_does_not_wait_for_the_device():
    """Tensors on "meta" have shapes and no values: code that reads one back fails."""
    one, other = (random_queries(seed) for seed in (0, 1))
    one, other = (replace(v, logits=v.logits.to("meta"), boxes=v.boxes.to("meta")) for v in (one, other))
    assert match_cost(one, other).is_meta


def test_no_pair_and_no_image():
    assert match_views([]) == []
    one, other = random_queries(0, images=0), random_queries(1, images=0)
    assert match_cost(one, other).shape == (0, 4, 4)
    assert match(one, other).shape == (0, 4)
    full = (random_queries(2), random_queries(3))
    mixed = match_views([(one, other), full, (other, one)])
    assert [m.shape for m in mixed] == [(0, 4), (2, 4), (0, 4)]
    assert torch.equal(mixed[1], match(*full))


# ---------------------------------------------------------------- numbers and memory


@HEADS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_views_are_matched_in_float32(softmax, dtype):
    views = [random_queries(seed, count=8, softmax=softmax, dtype=dtype) for seed in (40, 41)]
    exact = [replace(v, logits=v.logits.float(), boxes=v.boxes.float()) for v in views]
    with torch.autocast("cpu", dtype=dtype):
        cost, partners = match_cost(*views), match(*views)
    assert cost.dtype == torch.float32
    assert torch.equal(cost, match_cost(*exact))
    assert torch.equal(partners, match(*exact))


@HEADS
def test_matching_has_no_gradient_and_changes_nothing(softmax):
    one, other = (random_queries(seed, softmax=softmax) for seed in (42, 43))
    before = [view.logits.detach().clone() for view in (one, other)] + [one.boxes.detach().clone()]
    assert not match_cost(one, other).requires_grad
    assert not match(one, other).requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, (one.logits, other.logits, one.boxes), strict=True))


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return found


@HEADS
def test_a_full_size_step_holds_the_pairs_of_one_image_at_a_time(softmax):
    """300 queries, 80 classes: 29 MB a tensor of one image's pairs; two images would be twice that."""
    one = random_queries(44, count=300, classes=80, softmax=softmax, dtype=torch.float32)
    order = orders(8, 2, 300)
    other = reorder(nearly(one, 45), order)
    with Largest() as largest:
        partners = match(one, other)
    assert torch.equal(partners, order.argsort(1))
    assert largest.numel <= 300 * 300 * one.logits.shape[-1]
