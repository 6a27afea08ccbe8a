"""Hard targets: cross-entropy with the most likely answer, by hand and in the step."""

from __future__ import annotations

import math

import pytest
import torch

from sed.core.divergence import bernoulli_disagreement, bernoulli_kl, categorical_disagreement, categorical_kl
from sed.core.targets import Sharpening, hard_sigmoid, hard_softmax
from sed.methods.base import Schedule
from sed.methods.sed import SED, SEDOptions
from tests.reference.detectors import make_detector, make_labeled, make_unlabeled


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_they_are_certain_in_every_dtype(dtype):
    logits = torch.tensor([[0.3, 2.0, -1.0], [-5.0, -0.1, -0.2]], dtype=dtype)
    assert hard_sigmoid(logits).dtype == hard_softmax(logits).dtype == dtype
    assert hard_sigmoid(logits).sigmoid().tolist() == [[1, 1, 0], [0, 0, 0]]
    assert hard_softmax(logits).softmax(-1).tolist() == [[0, 1, 0], [0, 1, 0]]


def test_the_divergence_is_cross_entropy_and_the_disagreement_what_is_missing():
    told, p = torch.tensor([0.9, 0.2], dtype=torch.float64), torch.tensor([0.6, 0.3], dtype=torch.float64)
    target, student = hard_sigmoid(told.logit()), p.logit()
    torch.testing.assert_close(
        bernoulli_kl(target, student), torch.tensor([-math.log(0.6), -math.log(0.7)], dtype=torch.float64)
    )
    torch.testing.assert_close(bernoulli_disagreement(target, student), torch.tensor([0.4, 0.3], dtype=torch.float64))
    told, p = torch.tensor([[0.2, 0.5, 0.3]]).double(), torch.tensor([[0.1, 0.7, 0.2]]).double()
    target, student = hard_softmax(told.log()), p.log().requires_grad_()
    kl = categorical_kl(target, student)
    assert kl.item() == pytest.approx(-math.log(0.7))
    assert categorical_disagreement(target, student).item() == pytest.approx(0.3)
    kl.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.1, -0.3, 0.2]]).double())  # p - t


@pytest.mark.parametrize("name", ["small_rcnn", "resnet_retinanet"])
def test_the_step_takes_hard_targets_for_distillation_alone(name):
    def losses(target):
        torch.manual_seed(0)
        detector = make_detector(name)
        schedule = Schedule(burn_in=0, max_iter=10, first_drop=8)
        method = SED(detector, schedule, SEDOptions(regions_per_view=8, distill_target=target)).train()
        with torch.no_grad():  # a teacher of its own
            for weight in method.teacher.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        torch.manual_seed(1)
        found = method(make_labeled(), make_unlabeled(), 3)
        return found, method.metrics["teacher_positives"]

    (soft, counted), (hard, again) = losses("soft"), losses("hard")
    assert soft.keys() == hard.keys()
    changed = {key for key in soft if not torch.equal(soft[key], hard[key])}
    parts = {"dense_cls", "region_cls", "region_box"} if name == "small_rcnn" else {"dense_cls"}
    assert changed == {f"distill/{part}" for part in parts}  # a region's box weighs by the target's probability
    assert all(loss.isfinite() for loss in hard.values())
    assert torch.equal(counted, again)


# ---------------------------------------------------------------- between soft and hard


def literal_target(p, temperature, top_mass):
    """Of the probabilities of one vector: t^(1/T), normalised, then mixed with the hard label."""
    powers = [value ** (1 / temperature) for value in p]
    sharp = [value / sum(powers) for value in powers]
    best = max(range(len(p)), key=lambda i: p[i])
    return [(1 - top_mass) * value + top_mass * (i == best) for i, value in enumerate(sharp)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_mass", [0.0, 0.3, 1.0])
def test_sharpened_targets_equal_the_literal_form(temperature, top_mass):
    torch.manual_seed(0)
    logits = 2 * torch.randn(7, 4, dtype=torch.float64)
    sharpen = Sharpening(temperature, top_mass)
    slow = [literal_target(row, temperature, top_mass) for row in logits.softmax(-1).tolist()]
    torch.testing.assert_close(sharpen.softmax(logits).softmax(-1), torch.tensor(slow, dtype=torch.float64))
    slow = [[literal_target([p, 1 - p], temperature, top_mass)[0] for p in row] for row in logits.sigmoid().tolist()]
    torch.testing.assert_close(sharpen.sigmoid(logits).sigmoid(), torch.tensor(slow, dtype=torch.float64))


def test_sharpening_by_hand():
    """T = 1/2 squares: [.6, .3, .1] -> [.36, .09, .01] / .46. Half of the top class's mass: [.8, .15, .05]."""
    logits = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    by_hand = torch.tensor([0.36, 0.09, 0.01], dtype=torch.float64) / 0.46
    torch.testing.assert_close(Sharpening(0.5).softmax(logits).softmax(-1), by_hand)
    by_hand = torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64)
    torch.testing.assert_close(Sharpening(top_mass=0.5).softmax(logits).softmax(-1), by_hand)
    assert Sharpening(top_mass=0.5).sigmoid(torch.tensor(0.8).logit()).sigmoid().item() == pytest.approx(0.9)


def test_the_limits_of_sharpening():
    logits = torch.randn(3, 4, requires_grad=True)
    assert Sharpening().softmax(logits) is logits  # the paper's target is untouched
    assert torch.equal(Sharpening(top_mass=1.0).softmax(logits), hard_softmax(logits))
    assert torch.equal(Sharpening(top_mass=1.0).sigmoid(logits), hard_sigmoid(logits))
    torch.testing.assert_close(Sharpening(1e-3).softmax(logits).softmax(-1), hard_softmax(logits).softmax(-1))
    extreme = torch.tensor([[500.0, -500.0, 0.0]], dtype=torch.float16)  # probabilities of exactly 0 and 1
    for sharp in (Sharpening(0.5, 0.2), Sharpening(2.0, 0.2)):
        for told, p in ((sharp.softmax(extreme), extreme.float()), (sharp.sigmoid(extreme), extreme.float())):
            assert told.isfinite().all()
            assert not told.requires_grad
            assert bernoulli_kl(told, p * 0).isfinite().all()
            assert categorical_kl(told, p * 0).isfinite().all()
    assert Sharpening(0.5).softmax(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_mass": 1.1}, {"top_mass": -0.1}])
def test_sharpening_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match=f"expected a {next(iter(bad))}"):
        Sharpening(**bad)
