import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from dmt.loss import KINDS, dynamic_loss, dynamic_weight, mixed_loss
from tests.reference import dmt_loss as literal
from tests.reference.dmt_loss import batch

THREE = {"kind": "three_case", "gamma1": 5.0, "gamma2": 5.0}


def logits_of(*rows, dtype=torch.float32):
    return torch.tensor(rows, dtype=torch.float64).log().to(dtype)


# ---------------------------------------------------------------- check 5: one image after the other
@pytest.mark.parametrize(
    ("p", "label", "confidence", "weight", "case"),
    [
        ([0.7, 0.2, 0.1], 0, 0.9, 0.16807, 1),
        ([0.5, 0.3, 0.2], 1, 0.6, 0.00243, 2),
        ([0.8, 0.15, 0.05], 1, 0.6, 0.0, 3),
        ([0.5, 0.25, 0.25], 1, 0.5, 9.765625e-4, 2),  # a tie is case 2
    ],
)
def test_weight_of_the_three_cases(p, label, confidence, weight, case):
    found = dynamic_weight(
        logits_of(p), torch.tensor([label]), torch.tensor([confidence]), torch.tensor([True]), **THREE
    )
    torch.testing.assert_close(found.weight, torch.tensor([weight]), rtol=2e-6, atol=0)
    assert found.case.tolist() == [case]
    assert found.labels.tolist() == [label]


@pytest.mark.parametrize(("gammas", "expected"), [((5, 5), 0.2901040), ((3, 4), 0.3047603)])
def test_loss_of_four_pseudo_labels_and_a_labelled_image(gammas, expected):
    logits = logits_of([0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.8, 0.15, 0.05], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25])
    labels, confidence = torch.tensor([0, 1, 1, 1, 0]), torch.tensor([0.9, 0.6, 0.6, 0.5, 1.0])
    pseudo = torch.tensor([True, True, True, True, False])
    loss, metrics = dynamic_loss(
        logits, labels, confidence, pseudo, kind="three_case", gamma1=gammas[0], gamma2=gammas[1]
    )
    assert loss.item() == pytest.approx(expected, abs=6e-8)
    shares = [metrics[name].item() for name in ("agree", "labeler_wins", "learner_wins")]
    assert shares == [0.25, 0.5, 0.25]


# ---------------------------------------------------------------- check 6: pixels, one of them ignored
def test_loss_of_a_map_with_an_ignored_pixel():
    rows = [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.25, 0.5, 0.25]]
    logits = logits_of(*rows).T.reshape(1, 3, 2, 2)
    labels = torch.tensor([[[0, 1], [255, 1]]])
    confidence = torch.tensor([[[0.9, 0.6], [0.9, 0.5]]])
    pseudo = torch.tensor([True])
    found = dynamic_weight(logits, labels, confidence, pseudo, **THREE)
    torch.testing.assert_close(found.weight, torch.tensor([[[0.16807, 0.00243], [0.0, 0.03125]]]))
    loss, metrics = dynamic_loss(logits, labels, confidence, pseudo, **THREE)
    assert loss.item() == pytest.approx(0.0281776, abs=6e-8)
    assert metrics["weight"].item() == pytest.approx((0.16807 + 0.00243 + 0.03125) / 3)
    assert metrics["agree"].item() == pytest.approx(2 / 3)


# ---------------------------------------------------------------- check 8: DST
@pytest.mark.parametrize(("gamma", "weights"), [(9, [0.3874205, 0.0019531]), (4, [0.6561, 0.0625])])
def test_weight_of_dst(gamma, weights):
    found = dynamic_weight(
        logits_of([0.9, 0.1], [0.5, 0.5], dtype=torch.float64),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2),
        torch.ones(2, dtype=torch.bool),
        kind="naive",
        gamma1=gamma,
        gamma2=0,
    )
    assert found.weight.tolist() == pytest.approx(weights, abs=6e-8)


@pytest.mark.parametrize(("count", "expected"), [(3, 0.2451066), (2, 0.0210863)])
def test_loss_of_dst(count, expected):
    logits = logits_of([0.9, 0.1], [0.5, 0.5], [0.5, 0.5])[:count]
    labels = torch.zeros(count, dtype=torch.int64)
    pseudo = torch.tensor([True, True, False])[:count]
    loss, _ = dynamic_loss(logits, labels, torch.zeros(count), pseudo, kind="naive", gamma1=9, gamma2=9)
    assert loss.item() == pytest.approx(expected, abs=6e-8)


# ---------------------------------------------------------------- the other kinds, by hand
def test_flip_learns_its_own_label_in_case_3_only():
    p = [[0.8, 0.15, 0.05], [0.5, 0.3, 0.2], [0.7, 0.2, 0.1], [0.8, 0.15, 0.05]]
    labels, confidence = torch.tensor([1, 1, 0, 1]), torch.tensor([0.6, 0.6, 0.9, 0.6])
    pseudo = torch.tensor([True, True, True, False])
    found = dynamic_weight(logits_of(*p), labels, confidence, pseudo, kind="flip", gamma1=5, gamma2=2)
    assert found.labels.tolist() == [0, 1, 0, 1]  # a labelled image keeps its label
    torch.testing.assert_close(found.weight, torch.tensor([0.4**2, 0.3**2, 0.7**5, 1.0]))
    loss, _ = dynamic_loss(logits_of(*p), labels, confidence, pseudo, kind="flip", gamma1=5, gamma2=2)
    terms = [0.16 * math.log(0.8), 0.09 * math.log(0.3), 0.7**5 * math.log(0.7), math.log(0.15)]
    assert loss.item() == pytest.approx(-sum(terms) / 4, rel=1e-6)


def test_stored_and_threshold_look_at_the_stored_confidence_only():
    logits, labels = logits_of([0.9, 0.1], [0.2, 0.8], [0.2, 0.8]), torch.tensor([0, 0, 0])
    confidence, pseudo = torch.tensor([0.5, 0.9, 0.2]), torch.tensor([True, True, False])
    options = {"gamma1": 3, "gamma2": 7}
    stored = dynamic_weight(logits, labels, confidence, pseudo, kind="stored", **options)
    torch.testing.assert_close(stored.weight, torch.tensor([0.125, 0.729, 1.0]))
    threshold = dynamic_weight(logits, labels, confidence, pseudo, kind="threshold", threshold=0.9, **options)
    assert threshold.weight.tolist() == [0.0, 1.0, 1.0]  # at the threshold: kept


# ---------------------------------------------------------------- against the literal transcription
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (40, 5)])
@pytest.mark.parametrize("gammas", [(5.0, 5.0), (3.0, 1.5), (0.0, 2.0), (0.0, 0.0)])
def test_value_and_gradient_equal_the_literal_form(kind, shape, gammas):
    logits, labels, confidence, pseudo = batch(1, shape)
    logits.requires_grad_()
    options = {"kind": kind, "gamma1": gammas[0], "gamma2": gammas[1], "threshold": 0.6}
    loss, _ = dynamic_loss(logits, labels, confidence, pseudo, **options)
    slow, weights, targets = literal.loss(logits, labels, confidence, pseudo, **options)
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(slow, logits)[0])
    found = dynamic_weight(logits, labels, confidence, pseudo, **options)
    torch.testing.assert_close(found.weight.flatten().tolist(), weights)
    assert found.labels.flatten().tolist() == targets


def test_all_three_cases_occur_in_the_random_batch():
    logits, labels, confidence, pseudo = batch(1)
    found = dynamic_weight(logits, labels, confidence, pseudo, **THREE)
    assert set(found.case[:2][labels[:2] != 255].tolist()) == {1, 2, 3}
    flipped = dynamic_weight(logits, labels, confidence, pseudo, kind="flip", gamma1=5, gamma2=5)
    assert not torch.equal(flipped.labels, labels)


# ---------------------------------------------------------------- gradient and weight
@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_flows_through_the_weight(kind):
    logits, labels, confidence, pseudo = batch(2)
    logits.requires_grad_()
    options = {"kind": kind, "gamma1": 5.0, "gamma2": 4.0}
    found = dynamic_weight(logits, labels, confidence, pseudo, **options)
    assert not found.weight.requires_grad
    loss, metrics = dynamic_loss(logits, labels, confidence, pseudo, **options)
    assert not any(value.requires_grad for value in metrics.values())
    constant = found.weight * cross_entropy(logits, found.labels, reduction="none", ignore_index=255)
    expected = torch.autograd.grad(constant.sum() / (labels != 255).sum(), logits)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)


@pytest.mark.parametrize("kind", ["threshold", "stored"])  # the weights that do not depend on the logits
def test_gradcheck_where_the_weight_is_constant(kind):
    logits, labels, confidence, pseudo = batch(3, (3, 3, 2, 2))
    options = {"kind": kind, "gamma1": 2.0, "gamma2": 2.0, "threshold": 0.6}
    check = lambda x: dynamic_loss(x, labels, confidence, pseudo, **options)[0]  # noqa: E731
    assert torch.autograd.gradcheck(check, (logits.requires_grad_(),))


def test_gradcheck_of_plain_cross_entropy_and_of_mixed_images():
    logits, labels, confidence, pseudo = batch(4, (5, 3))
    logits.requires_grad_()
    plain = lambda x: dynamic_loss(x, labels, confidence, pseudo, kind="three_case", gamma1=0, gamma2=0)[0]  # noqa: E731
    assert torch.autograd.gradcheck(plain, (logits,))
    labels = labels.clamp(max=2)
    assert torch.autograd.gradcheck(lambda x: mixed_loss(x, labels, labels.flip(0), confidence, 0.75), (logits,))


# ---------------------------------------------------------------- limit cases
@pytest.mark.parametrize("kind", ["three_case", "naive", "flip", "stored"])
def test_gammas_of_zero_are_plain_cross_entropy(kind):
    logits, labels, confidence, pseudo = batch(5)
    logits.requires_grad_()
    loss, metrics = dynamic_loss(logits, labels, confidence, pseudo, kind=kind, gamma1=0, gamma2=0)
    plain = cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(plain, logits)[0])
    assert metrics["weight"].item() == 1.0


def test_zero_to_the_power_of_zero_is_one():
    logits = torch.tensor([[0.0, -1000.0]])  # p of class 1 is 0 in float32
    options = {"kind": "naive", "gamma1": 0, "gamma2": 0}
    found = dynamic_weight(logits, torch.tensor([1]), torch.tensor([0.9]), torch.tensor([True]), **options)
    assert found.weight.tolist() == [1.0]
    assert dynamic_loss(logits, torch.tensor([1]), torch.tensor([0.9]), torch.tensor([True]), **options)[0] == 1000.0


@pytest.mark.parametrize("kind", KINDS)
def test_labelled_images_alone_give_cross_entropy(kind):
    logits, labels, confidence, pseudo = batch(6)
    loss, metrics = dynamic_loss(
        logits, labels, confidence, torch.zeros_like(pseudo), kind=kind, gamma1=5.0, gamma2=5.0
    )
    torch.testing.assert_close(loss, cross_entropy(logits, labels, ignore_index=255))
    assert {value.item() for value in metrics.values()} == {0.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3), (0, 3), (0, 3, 4, 4)])
def test_nothing_to_learn_is_a_differentiable_zero(kind, shape):
    logits, labels, confidence, pseudo = batch(7, shape)
    logits.requires_grad_()
    ignored = torch.full_like(labels, 255)
    loss, metrics = dynamic_loss(logits, ignored, confidence, pseudo, kind=kind, gamma1=5.0, gamma2=5.0)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert {value.item() for value in metrics.values()} == {0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_ignored_has_no_say(kind):
    logits, labels, confidence, pseudo = batch(8)
    ruined = torch.where((labels == 255)[:, None], torch.tensor([50.0, -50.0, 3.0]).reshape(1, 3, 1, 1), logits)
    other = torch.where(labels == 255, 0.999, confidence)
    options = {"kind": kind, "gamma1": 5.0, "gamma2": 5.0}
    one, two = (
        dynamic_loss(*args, labels, c, pseudo, **options) for args, c in (((logits,), confidence), ((ruined,), other))
    )
    torch.testing.assert_close(one, two)


def test_padding_an_image_with_ignored_pixels_changes_nothing():
    logits, labels, confidence, pseudo = batch(9)
    pad = torch.nn.functional.pad
    one = dynamic_loss(logits, labels, confidence, pseudo, **THREE)
    two = dynamic_loss(
        pad(logits, (0, 3, 0, 2)), pad(labels, (0, 3, 0, 2), value=255), pad(confidence, (0, 3, 0, 2)), pseudo, **THREE
    )
    torch.testing.assert_close(one, two)


def test_parts_with_the_common_total_add_up_to_the_whole():
    logits, labels, confidence, pseudo = batch(10)
    whole, _ = dynamic_loss(logits, labels, confidence, pseudo, **THREE)
    total = (labels != 255).sum()
    parts = [
        dynamic_loss(logits[i::2], labels[i::2], confidence[i::2], pseudo[i::2], total=total, **THREE)[0]
        for i in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_weighed_in_float32(dtype):
    logits, labels, confidence, pseudo = batch(11)
    half = logits.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = dynamic_loss(half, labels, confidence.float(), pseudo, **THREE)
        found = dynamic_weight(half, labels, confidence.float(), pseudo, **THREE)
    assert loss.dtype == found.weight.dtype == torch.float32
    torch.testing.assert_close(loss, dynamic_loss(half.float(), labels, confidence.float(), pseudo, **THREE)[0])


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    for kind in KINDS:
        loss, _ = dynamic_loss(
            logits,
            torch.tensor([1, 1]),
            torch.tensor([1.0, 1.0]),
            torch.tensor([True, True]),
            kind=kind,
            gamma1=5,
            gamma2=5,
        )
        (grad,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "three"}, "expected one of three_case"),
        ({"gamma2": -1.0}, "gammas >= 0"),
        ({"labels": torch.zeros(4, 5, dtype=torch.int64)}, "logits \\(4, 3, 5, 6\\)"),
        ({"pseudo": torch.zeros(3, dtype=torch.bool)}, "pseudo \\(4,\\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    logits, labels, confidence, pseudo = batch(0)
    given = {"logits": logits, "labels": labels, "confidence": confidence, "pseudo": pseudo, **THREE, **change}
    for function in (dynamic_loss, dynamic_weight):
        with pytest.raises(ValueError, match=message):
            function(**given)
