"""Optimizers, clipping and schedules: Detectron2's own where it has them."""

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch
from detectron2.modeling import build_model
from detectron2.solver.build import build_optimizer as stock_optimizer
from torch import nn

from sed.d2 import SemiSupervisedTrainer
from tests.reference.detectron2_run import make_trainer, tiny_config
from tests.reference.training import same


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.head = nn.Linear(2, 1)


def test_sgd_is_detectron2_s_own(tmp_path, squares):
    cfg = tiny_config(squares, tmp_path, SOLVER__OPTIMIZER="SGD", SOLVER__CLIP_GRADIENTS__ENABLED=False)
    net = Net()
    ours, stock = SemiSupervisedTrainer.build_optimizer(cfg, net), stock_optimizer(cfg, net)
    assert type(ours) is type(stock)
    assert same(ours.state_dict(), stock.state_dict()) is None


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_backbone_may_learn_slower(tmp_path, squares, name):
    cfg = tiny_config(squares, tmp_path, SOLVER__OPTIMIZER=name, SOLVER__BACKBONE_MULTIPLIER=0.1)
    net = Net()
    groups = SemiSupervisedTrainer.build_optimizer(cfg, net).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rates[id(p)] for p in net.backbone.parameters()] == pytest.approx([cfg.SOLVER.BASE_LR * 0.1] * 4)
    assert {rates[id(p)] for p in net.head.parameters()} == {cfg.SOLVER.BASE_LR}


@pytest.mark.parametrize("name", ["build_resnet_fpn_backbone", "timm:test_efficientnet"])
def test_the_pyramid_learns_as_fast_as_the_heads(tmp_path, squares, name):
    words = {"SOLVER__OPTIMIZER": "AdamW", "SOLVER__BACKBONE_MULTIPLIER": 0.1, "MODEL__BACKBONE__NAME": name}
    sizes = {"MODEL__ANCHOR_GENERATOR__SIZES": [[8], [16], [32], [64], [128]]}
    cfg = tiny_config(squares, tmp_path, **words, **sizes, MODEL__RESNETS__NORM="FrozenBN")
    model = build_model(cfg)
    groups = SemiSupervisedTrainer.build_optimizer(cfg, model).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    slower = {n for n, p in model.named_parameters() if rates.get(id(p)) == pytest.approx(cfg.SOLVER.BASE_LR * 0.1)}
    assert slower
    body = ("backbone.bottom_up.", "backbone.body.body.")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert slower == {n for n in trained if n.startswith(body)}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("value", [[1, 0], [-1]]), ("norm", [[1, 0], [-1]]), ("full_model", [[0.6, 0], [-0.8]])],
)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_gradients_are_clipped_as_the_config_says(tmp_path, squares, name, kind, expected):
    cfg = tiny_config(
        squares,
        tmp_path,
        SOLVER__OPTIMIZER=name,
        SOLVER__CLIP_GRADIENTS__ENABLED=True,
        SOLVER__CLIP_GRADIENTS__CLIP_TYPE=kind,
        SOLVER__CLIP_GRADIENTS__CLIP_VALUE=1.0,
    )
    net = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))])
    optimizer = SemiSupervisedTrainer.build_optimizer(cfg, net)
    net[0].grad, net[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([-4.0])
    optimizer.step()
    for parameter, values in zip(net, expected, strict=True):
        assert parameter.grad.tolist() == pytest.approx(values, abs=1e-5)


def test_a_run_shorter_than_its_schedule_trains(tmp_path, squares):
    short = {"SOLVER__STEPS": "(1, 2)", "SOLVER__WARMUP_ITERS": 1000, "SOLVER__MAX_ITER": 2}
    cfg = tiny_config(squares, tmp_path, DATASETS__TEST="()", **short)
    trainer = make_trainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    assert trainer.iter == 2
