"""`sed` stays the paper's method: its losses on fixed weights and fixed images do not change.

The defaults of SEDOptions and of the config are the paper's (docs/method.md 2 to 7). A new option must
not change these values; they were computed before the code had any option beside the paper's.
"""

from __future__ import annotations

import pytest
import torch

from sed.core.structures import Images, LabeledBatch, Targets, UnlabeledBatch
from sed.defaults import get_cfg
from sed.methods.base import Schedule
from sed.methods.build import method_from_config
from sed.methods.sed import SED
from sed.options.methods import SEDOptions
from tests.reference.detectors import make_detector

PINNED = {
    "small_rcnn": {
        "scale/dense_cls": 1.21605,
        "scale/dense_box": 11.3227,
        "scale/region_cls": 0.00308727,
        "scale/region_box": 0.000448802,
        "distill/dense_cls": 1.10793,
        "distill/dense_box": 15.2319,
        "distill/region_cls": 0.00287261,
        "distill/region_box": 0.100268,
    },
    "resnet_retinanet": {
        "scale/dense_cls": 2.16859,
        "scale/dense_box": 39.8561,
        "distill/dense_cls": 1.76984,
        "distill/dense_box": 83.7276,
    },
}


def waves(shape, rate, phase=0.0):
    """Numbers in [-1, 1] that are the same in every version of torch: no random number generator is used."""
    count = torch.Size(shape).numel()
    return torch.sin(rate * torch.arange(count, dtype=torch.float64) + phase).reshape(shape)


def fixed_detector(name, phase):
    detector = make_detector(name)
    with torch.no_grad():
        for number, (key, weight) in enumerate(detector.named_parameters()):
            fan = max(weight[0].numel(), 1) if weight.dim() > 1 else 16
            gain = 60 if "cls_score.weight" in key else 3  # else the predictions of all regions would be almost equal
            values = gain * waves(weight.shape, 1.7 + 0.01 * number, phase) / fan**0.5
            weight.copy_(1 + 0.1 * values if "norm" in name and weight.dim() == 1 else values)
    return detector


def fixed_batches():
    sizes = ((64, 64), (50, 60))
    weak = torch.zeros(2, 3, 64, 64)
    strong = torch.zeros(2, 3, 64, 64)
    for i, (h, w) in enumerate(sizes):
        weak[i, :, :h, :w] = (127.5 * (1 + waves((3, h, w), 0.37, i))).float()
        strong[i, :, :h, :w] = (127.5 * (1 + waves((3, h, w), 0.37, i + 0.4))).float()
    boxes = torch.tensor([[4.0, 4, 30, 36], [20, 10, 44, 40]])
    labeled = LabeledBatch(Images(weak, sizes), (Targets(boxes, torch.tensor([0, 2])),) * 2)
    return labeled, UnlabeledBatch(Images(weak, sizes), Images(strong, sizes))


def losses_of(name, options):
    method = SED(fixed_detector(name, 0.0), Schedule(burn_in=0, max_iter=10, first_drop=8), options).train()
    method.teacher.module.load_state_dict(fixed_detector(name, 0.3).state_dict())
    torch.manual_seed(0)
    losses = method(*fixed_batches(), 3)
    return {key: loss.item() for key, loss in losses.items() if not key.startswith("sup/")}


@pytest.mark.parametrize("name", ["small_rcnn", "resnet_retinanet"])
def test_the_paper_s_losses_are_pinned(name):
    found = losses_of(name, SEDOptions(regions_per_view=8))
    assert found == pytest.approx(PINNED[name], rel=1e-4)


def test_the_config_s_defaults_are_the_paper_s():
    cfg = get_cfg()
    method = method_from_config(cfg, make_detector())
    assert method.options == SEDOptions()
    assert method.schedule == Schedule(burn_in=10000, max_iter=180000, first_drop=120000)
