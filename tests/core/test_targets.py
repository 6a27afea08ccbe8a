"""Hard targets (Tab. 4): cross-entropy with the most likely class, by hand and in a step of SED."""

from __future__ import annotations

import math

import pytest
import torch

from sed.core.divergence import bernoulli_disagreement, bernoulli_kl, categorical_disagreement, categorical_kl
from sed.core.targets import harden_sigmoid, harden_softmax
from sed.methods.base import Schedule
from sed.methods.sed import SED, SEDOptions
from tests.reference.detectors import make_detector, make_labeled, make_unlabeled


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_hard_targets_have_probability_1_in_every_dtype(dtype):
    logits = torch.tensor([[0.3, 2.0, -1.0], [-5.0, -0.1, -0.2]], dtype=dtype)
    assert harden_sigmoid(logits).dtype == harden_softmax(logits).dtype == dtype
    assert harden_sigmoid(logits).sigmoid().tolist() == [[1, 1, 0], [0, 0, 0]]
    assert harden_softmax(logits).softmax(-1).tolist() == [[0, 1, 0], [0, 1, 0]]


def test_the_divergence_is_cross_entropy_and_g_the_missing_probability():
    t, p = torch.tensor([0.9, 0.2], dtype=torch.float64), torch.tensor([0.6, 0.3], dtype=torch.float64)
    target, student = harden_sigmoid(t.logit()), p.logit()
    torch.testing.assert_close(
        bernoulli_kl(target, student), torch.tensor([-math.log(0.6), -math.log(0.7)], dtype=torch.float64)
    )
    torch.testing.assert_close(bernoulli_disagreement(target, student), torch.tensor([0.4, 0.3], dtype=torch.float64))
    t, p = torch.tensor([[0.2, 0.5, 0.3]]).double(), torch.tensor([[0.1, 0.7, 0.2]]).double()
    target, student = harden_softmax(t.log()), p.log().requires_grad_()
    kl = categorical_kl(target, student)
    assert kl.item() == pytest.approx(-math.log(0.7))
    assert categorical_disagreement(target, student).item() == pytest.approx(0.3)
    kl.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.1, -0.3, 0.2]]).double())  # p - t


@pytest.mark.parametrize("name", ["small_rcnn", "resnet_retinanet"])
def test_hard_targets_are_used_by_the_distillation_term_alone(name):
    def losses(target):
        torch.manual_seed(0)
        detector = make_detector(name)
        schedule = Schedule(burn_in=0, max_iter=10, first_drop=8)
        method = SED(detector, schedule, SEDOptions(regions_per_view=8, distill_target=target)).train()
        with torch.no_grad():  # a teacher that differs from the student
            for weight in method.teacher.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        torch.manual_seed(1)
        found = method(make_labeled(), make_unlabeled(), 3)
        return found, method.metrics["teacher_positives"]

    (soft, counted), (hard, again) = losses("soft"), losses("hard")
    assert soft.keys() == hard.keys()
    changed = {key for key in soft if not torch.equal(soft[key], hard[key])}
    parts = {"dense_cls", "region_cls", "region_box"} if name == "small_rcnn" else {"dense_cls"}
    # the box term of regions changes too: it is weighted by the target's probability
    assert changed == {f"distill/{part}" for part in parts}
    assert all(loss.isfinite() for loss in hard.values())
    assert torch.equal(counted, again)
