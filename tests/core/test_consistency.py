from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sed.core.consistency import dense_consistency, region_consistency
from sed.core.divergence import bernoulli_disagreement, bernoulli_kl
from sed.core.reweighting import histogram, make_reweight, mean
from sed.core.structures import DenseLevel, DensePrediction, Images, RegionPrediction
from sed.core.views import downscale, pair_levels, valid_anchors
from tests.reference import equations
from tests.reference.predictions import dense_level, level_pairs, regions

KINDS = ["histogram", "none", "ohem", "focal"]


def reweight_of(kind):
    return make_reweight(kind, bins=10)


def logit(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).logit()


def leaves(pairs):
    return [tensor for pair in pairs for side in pair for tensor in (side.logits, side.deltas)]


def gradients(loss, inputs):
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True)]


def swapped(pairs):
    return [(other, one) for one, other in pairs]


# ---------------------------------------------------------------- dense terms


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("valid", [True, False])
def test_dense_terms_equal_the_literal_form(symmetric, classes, valid):
    pairs = level_pairs(classes, valid=valid)
    fast = dense_consistency(pairs, histogram(10), symmetric)
    slow = equations.dense_terms(pairs, 10, symmetric)
    for own, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(own, other)
        torch.testing.assert_close(gradients(own, leaves(pairs)), gradients(other, leaves(pairs)))


def test_the_target_has_a_gradient_in_equation_2_alone():
    pairs = level_pairs()
    for symmetric in (False, True):
        loss = sum(dense_consistency(pairs, histogram(10), symmetric))
        found = gradients(loss, leaves(pairs))
        target, student = found[0:2] + found[4:6], found[2:4] + found[6:8]
        assert all(grad.abs().sum() > 0 for grad in student)
        assert all((grad.abs().sum() > 0) == symmetric for grad in target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_equal_predictions_have_zero_loss_and_zero_gradient(kind, symmetric):
    one = dense_level(0, classes=3, dtype=torch.float32, valid=False)
    other = replace(
        one,
        logits=one.logits.detach().clone().requires_grad_(),
        deltas=one.deltas.detach().clone().requires_grad_(),
    )
    region = regions(0)
    same = RegionPrediction(
        region.logits.detach().clone().requires_grad_(),
        region.deltas.detach().clone().requires_grad_(),
        region.counts,
    )
    losses = [
        *dense_consistency([(one, other)], reweight_of(kind), symmetric),
        *region_consistency(region, same, reweight_of(kind), symmetric),
    ]
    assert [loss.item() for loss in losses] == [0.0] * 4
    inputs = [one.logits, one.deltas, other.logits, other.deltas, region.logits, region.deltas]
    for grad in gradients(sum(losses), [*inputs, same.logits, same.deltas]):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("kind", KINDS)
def test_swapping_the_views_leaves_equation_2_s_value(kind):
    pairs = level_pairs(3)
    one = dense_consistency(pairs, reweight_of(kind), True)
    other = dense_consistency(swapped(pairs), reweight_of(kind), True)
    torch.testing.assert_close(one, other)
    assert dense_consistency(pairs, reweight_of(kind), False).cls.item() != pytest.approx(
        dense_consistency(swapped(pairs), reweight_of(kind), False).cls.item()
    )
    a, b = regions(1), regions(2)
    torch.testing.assert_close(
        region_consistency(a, b, reweight_of(kind), True), region_consistency(b, a, reweight_of(kind), True)
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_one_histogram_spans_all_levels(symmetric):
    pairs = level_pairs(valid=True)
    calls = []

    def spy(kl, g, mask):
        calls.append(int(mask.sum()))
        return histogram(10)(kl, g, mask)

    together = dense_consistency(pairs, spy, symmetric).cls
    assert calls == [sum(one.logits.numel() for one, _ in pairs)]
    apart = sum(dense_consistency([pair], histogram(10), symmetric).cls for pair in pairs)
    assert together.item() != pytest.approx(apart.item())


@pytest.mark.parametrize("symmetric", [False, True])
def test_order_of_anchors_and_levels_and_doubled_images_change_nothing(symmetric):
    pairs = level_pairs(2)
    expected = dense_consistency(pairs, histogram(10), symmetric)
    torch.testing.assert_close(dense_consistency(pairs[::-1], histogram(10), symmetric), expected)

    def change(level, edit):
        return DenseLevel(level.level, level.grid, edit(level.logits), edit(level.deltas), edit(level.valid))

    shuffled, doubled = [], []
    for one, other in pairs:
        order = torch.randperm(one.valid.shape[1], generator=torch.Generator().manual_seed(1))
        shuffled.append(tuple(change(side, lambda x, i=order: x[:, i]) for side in (one, other)))
        doubled.append(tuple(change(side, lambda x: torch.cat([x, x])) for side in (one, other)))
    torch.testing.assert_close(dense_consistency(shuffled, histogram(10), symmetric), expected)
    torch.testing.assert_close(dense_consistency(doubled, histogram(10), symmetric), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_padding_changes_no_loss(kind, symmetric):
    """docs/method.md 10.7: the same image with more padding; the predictions on padding are arbitrary."""
    size, per_cell, f = (24, 40), 2, 3
    tight = (3, 5)
    pair = tuple(dense_level(seed, f, tight, images=1, per_cell=per_cell, classes=2) for seed in (0, 1))
    canvas = (4, 8)
    padded = []
    for side, fill in zip(pair, (9.0, -9.0), strict=True):

        def place(values, fill=fill):
            cells = values.new_full((1, *canvas, per_cell * values.shape[-1]), fill)
            cells[:, : tight[0], : tight[1]] = values.reshape(1, *tight, -1)
            return cells.reshape(1, -1, values.shape[-1])

        mask = valid_anchors((size,), f, canvas, per_cell, "cpu")
        assert int(mask.sum()) == side.valid.numel()
        padded.append(DenseLevel(f, canvas, place(side.logits), place(side.deltas), mask))
    expected = dense_consistency([pair], reweight_of(kind), symmetric)
    found = dense_consistency([tuple(padded)], reweight_of(kind), symmetric)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(sum(found), leaves([pair])), gradients(sum(expected), leaves([pair])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_nothing_but_padding_is_a_differentiable_zero(kind, symmetric):
    pairs = [tuple(replace(side, valid=torch.zeros_like(side.valid)) for side in pair) for pair in level_pairs()]
    loss = sum(dense_consistency(pairs, reweight_of(kind), symmetric))
    assert loss.item() == 0.0
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in gradients(loss, leaves(pairs)))


def stub_detector(images, levels, per_cell=2):
    """Scale-equivariant by construction: level f pools the image to one value a cell of 2^f pixels."""
    found = []
    for f in levels:
        cells = F.avg_pool2d(images.tensor, 2**f).mean(1)  # [N, rows, columns]
        grid = (cells.shape[1], cells.shape[2])
        values = cells.reshape(len(images), -1, 1)
        logits = torch.cat([values - 2, 1 - values], -1).reshape(len(images), -1, 1)
        deltas = (logits * torch.tensor([1.0, -1, 0.5, 2])).requires_grad_()
        valid = valid_anchors(images.sizes, f, grid, per_cell, "cpu")
        found.append(DenseLevel(f, grid, logits.requires_grad_(), deltas, valid))
    return DensePrediction(tuple(found))


@pytest.mark.parametrize("s", [1, 2])
def test_a_scale_equivariant_detector_has_no_scale_loss(s):
    torch.manual_seed(0)
    images = Images(torch.rand(2, 3, 64, 64), ((64, 64), (37, 50)))
    full, small = stub_detector(images, range(2, 7)), stub_detector(downscale(images, s), range(2, 7 - s))
    loss = dense_consistency(pair_levels(full, small, s), histogram(10), True)
    assert loss.cls.item() == pytest.approx(0, abs=1e-9)
    assert loss.box.item() == pytest.approx(0, abs=1e-9)
    wrong = list(zip(full.levels[:1], stub_detector(images, [2]).levels, strict=True))
    wrong = [(one, replace(other, logits=other.logits.flip(1))) for one, other in wrong]
    assert dense_consistency(wrong, histogram(10), True).cls.item() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_compared_in_float32(dtype):
    pairs = [
        tuple(
            replace(
                side,
                logits=side.logits.detach().to(dtype).requires_grad_(),
                deltas=side.deltas.detach().to(dtype).requires_grad_(),
            )
            for side in pair
        )
        for pair in level_pairs(3)
    ]
    exact = [
        tuple(replace(s, logits=s.logits.detach().float(), deltas=s.deltas.detach().float()) for s in pair)
        for pair in pairs
    ]
    with torch.autocast("cpu", dtype=dtype):
        loss = dense_consistency(pairs, histogram(10), True)
    assert loss.cls.dtype == loss.box.dtype == torch.float32
    torch.testing.assert_close(loss, dense_consistency(exact, histogram(10), True))
    assert all(torch.isfinite(grad).all() for grad in gradients(sum(loss), leaves(pairs)))


def test_predictions_of_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"level 3.*\(2, 12, 1\).*pair_levels"):
        dense_consistency([(dense_level(0), dense_level(1, grid=(2, 2)))], mean(), False)
    with pytest.raises(ValueError, match="at least one"):
        dense_consistency([], mean(), False)
    with pytest.raises(ValueError, match="same proposals"):
        region_consistency(regions(0), regions(1, counts=(2,)), mean(), False)


# ---------------------------------------------------------------- region terms


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_region_terms_equal_the_literal_form(symmetric, agnostic, classes):
    target, student = (regions(seed, classes=classes, agnostic=agnostic) for seed in (3, 4))
    fast = region_consistency(target, student, histogram(10), symmetric)
    slow = equations.region_terms(target, student, 10, symmetric)
    inputs = [target.logits, target.deltas, student.logits, student.deltas]
    for own, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(own, other)
        torch.testing.assert_close(gradients(own, inputs), gradients(other, inputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
def test_no_region_is_a_differentiable_zero(kind, symmetric, agnostic):
    target, student = (regions(seed, counts=(0, 0), agnostic=agnostic) for seed in (0, 1))
    loss = sum(region_consistency(target, student, reweight_of(kind), symmetric))
    assert loss.item() == 0.0
    loss.backward()
    assert student.logits.grad.shape == (0, 4)
    assert student.deltas.grad.shape == student.deltas.shape


def test_the_box_term_ignores_background_regions():
    target, student = regions(5), regions(6)
    background = torch.tensor([-60.0, -60, -60, 60], dtype=torch.float64).expand(9, 4)
    loss = region_consistency(replace(target, logits=background), student, mean(), False)
    assert loss.box.item() == pytest.approx(0, abs=1e-12)
    certain = torch.tensor([-60.0, 60, -60, -60], dtype=torch.float64).expand(9, 4)
    loss = region_consistency(replace(target, logits=certain), student, mean(), False)
    expected = (target.deltas[:, 1] - student.deltas[:, 1]).square().sum(-1).mean()
    torch.testing.assert_close(loss.box, expected.detach(), check_dtype=True)


def test_region_box_weights_carry_no_gradient():
    target, student = regions(7), regions(8)
    for grad in gradients(region_consistency(target, student, mean(), True).box, [target.logits, student.logits]):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_a_step_saves_few_tensors_for_backward():
    """For backward, D keeps p - t and the re-weighting its weights: two tensors of the logits' size, and the masks."""
    one, other = (dense_level(s, grid=(40, 50), images=1, per_cell=5, dtype=torch.float32) for s in (0, 1))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        kl = bernoulli_kl(one.logits, other.logits)
        g = bernoulli_disagreement(one.logits, other.logits)
        histogram(10)(kl, g, torch.ones_like(kl, dtype=torch.bool))
    assert sum(x.dtype == torch.float32 and x.numel() == one.logits.numel() for x in kept) <= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_loss_waits_for_the_device(kind, symmetric):
    """Tensors on "meta" have shapes and no values: code that reads one back fails."""

    def on_meta(item):
        tensors = {"logits", "deltas", "valid"} & set(vars(item))
        return replace(item, **{name: getattr(item, name).detach().to("meta") for name in tensors})

    pairs = [tuple(on_meta(side) for side in pair) for pair in level_pairs(2)]
    sides = [on_meta(regions(seed)) for seed in (0, 1)]
    for item in [side for pair in pairs for side in pair] + sides:
        item.logits.requires_grad_()
        item.deltas.requires_grad_()
    loss = sum(dense_consistency(pairs, reweight_of(kind), symmetric))
    loss = loss + sum(region_consistency(*sides, reweight_of(kind), symmetric))
    loss.backward()
    assert loss.is_meta
    assert all(side.logits.grad.is_meta for _, side in pairs)
    assert valid_anchors(((8, 8),), 2, (2, 2), 1, "meta").is_meta
