"""Optimizer groups, learning rates by hand, clipping."""

import math

import pytest
import torch
from torch import nn

from sed.engine import solver
from sed.engine.solver import Clip, LearningRate
from tests.reference.detectors import make_detector
from tests.reference.training import TinyDetector


def lr_factor(name, **values):
    return solver.lr_factor(name, **{"steps": (), "gamma": 0.1, "warmup_iters": 0, "warmup_factor": 0.001, **values})


def build_optimizer(model, name="SGD", **values):
    usual = {"momentum": 0.9, "weight_decay": 0.0, "weight_decay_norm": 0.0, "backbone_multiplier": 1.0}
    return solver.build_optimizer(model, name, **{**usual, **values})


def test_multistep_with_warmup_by_hand():
    f = lr_factor("WarmupMultiStepLR", max_iter=100, steps=(50, 80), gamma=0.1, warmup_iters=10, warmup_factor=0.1)
    by_hand = {0: 0.1, 5: 0.55, 9: 0.91, 10: 1.0, 49: 1.0, 50: 0.1, 79: 0.1, 80: 0.01, 99: 0.01}
    assert {step: f(step) for step in by_hand} == pytest.approx(by_hand)


def test_cosine_with_warmup_by_hand():
    f = lr_factor("WarmupCosineLR", max_iter=200, warmup_iters=20, warmup_factor=0.001)
    end = 0.5 * (1 + math.cos(math.pi * 0.1))
    by_hand = {0: 0.001, 10: (0.001 + end) / 2, 20: end, 100: 0.5, 150: 0.5 * (1 + math.cos(math.pi * 0.75))}
    assert {step: f(step) for step in by_hand} == pytest.approx(by_hand)


def test_edges_of_the_schedule():
    assert lr_factor("WarmupMultiStepLR", max_iter=10, steps=(), warmup_iters=0)(0) == 1.0
    assert lr_factor("WarmupMultiStepLR", max_iter=10, steps=(20,), warmup_iters=0)(9) == 1.0  # a drop never reached
    rising = lr_factor("WarmupMultiStepLR", max_iter=4, steps=(), warmup_iters=8, warmup_factor=0.5)
    assert rising(0) == 0.5  # a run shorter than its warm-up
    assert 0.5 < rising(3) <= 1.0
    with pytest.raises(ValueError, match="MAX_ITER is 0"):
        lr_factor("WarmupMultiStepLR", max_iter=0)
    with pytest.raises(ValueError, match="LR_SCHEDULER_NAME is 'Poly'"):
        lr_factor("Poly", max_iter=5)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_groups_know_norms_and_backbone(name):
    model = TinyDetector()
    model.model["head"].bias.requires_grad_(False)
    optimizer = build_optimizer(model, name, lr=1.0, weight_decay=0.1, weight_decay_norm=0.0, backbone_multiplier=0.5)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    conv, norm = model.model["backbone"]
    head = model.model["head"]
    assert found == {
        id(conv.weight): (0.5, 0.1),
        id(conv.bias): (0.5, 0.1),
        id(norm.weight): (0.5, 0.0),
        id(norm.bias): (0.5, 0.0),
        id(head.weight): (1.0, 0.1),
    }
    rate = LearningRate.of(optimizer, lambda step: 0.1 * step)
    assert rate.apply(optimizer, 3) == pytest.approx(0.3)
    assert rate.apply(optimizer, 2) == pytest.approx(0.2)  # from the bases, not from what is set
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.1, 0.2])


def test_the_pyramid_learns_as_fast_as_the_heads():
    model = make_detector("small_rcnn")
    optimizer = build_optimizer(model, lr=1.0, backbone_multiplier=0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    slower = {name for name, p in named.items() if rates.get(id(p)) == 0.5}
    assert slower
    assert slower == {n for n in named if n.startswith("model.backbone.") and not n.startswith("model.backbone.fpn.")}


def test_bad_optimizers_are_told():
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'Adam'"):
        build_optimizer(TinyDetector(), "Adam", lr=1.0)
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(TinyDetector().requires_grad_(False), lr=1.0)
    with pytest.raises(ValueError, match="BACKBONE_MULTIPLIER"):
        build_optimizer(nn.Linear(2, 2), lr=1.0, backbone_multiplier=0.1)


def test_clipping():
    def parameters():
        ps = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
        ps[0].grad, ps[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([-4.0])
        return ps  # the third has no gradient

    plain, norm, value, each = parameters(), parameters(), parameters(), parameters()
    assert Clip()(plain).item() == pytest.approx(5)
    assert plain[0].grad.tolist() == [3, 0]
    assert Clip("full_model", 1.0)(norm).item() == pytest.approx(5)
    assert norm[0].grad.tolist() == pytest.approx([0.6, 0], abs=1e-5)
    assert norm[1].grad.tolist() == pytest.approx([-0.8], abs=1e-5)
    assert Clip("value", 3.5)(value).item() == pytest.approx(5)
    assert value[1].grad.tolist() == [-3.5]
    assert value[0].grad.tolist() == [3, 0]
    assert Clip("norm", 3.5)(each).item() == pytest.approx(5)  # each by its own norm, as Detectron2 does
    assert each[1].grad.tolist() == pytest.approx([-3.5], abs=1e-5)
    assert each[0].grad.tolist() == [3, 0]
