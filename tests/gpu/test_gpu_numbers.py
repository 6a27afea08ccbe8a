"""Every detector and every method on the GPU against the CPU: predictions, detections, losses, gradients.

Both sides start from the same weights and random numbers. Where rounding decides about a discrete choice (the order of
proposals, a match) the numbers would part for good; these weights and images are such that none is so close.
"""

from __future__ import annotations

import copy

import pytest
import torch

from sed.core.structures import LabeledBatch, UnlabeledBatch
from sed.methods.base import Schedule
from sed.methods.build import build_method
from sed.options.methods import PseudoLabelOptions, SEDOptions, SEDPlusOptions
from tests.reference.cases import CASES
from tests.reference.detectors import make_images, make_labeled, make_unlabeled, predict_all
from tests.reference.devices import RandomOfCPU, without_chance

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("float32")]

SIZES = ((128, 128), (100, 120))
BOUND = 1e-4  # of the largest number of a tensor; of a loss; of the norm of all gradients
SCHEDULE = Schedule(burn_in=2, max_iter=10, first_drop=8)
METHODS = {
    "supervised": ("supervised", None),
    "pseudo_label": ("pseudo_label", PseudoLabelOptions(threshold=0.6, box_loss=True)),
    "sed": ("sed", SEDOptions(regions_per_view=8)),
    "sed_plus": ("sed_plus", SEDPlusOptions(threshold=0.6)),
}
# Faster R-CNN, RetinaNet and three of the DETR family, in either engine
NAMED = ("resnet_rcnn", "resnet_retinanet", "detr", "deformable_detr", "rt_detr", "d2_fpn_rcnn", "d2_retinanet")
# With these weights rounding decides about their choices, on the CPU too: relative noise of the size of the GPU's on
# the weights moves losses or gradients by more than the bound. The typical number is compared, not the worst.
NOISE = 3e-6
SENSITIVE = {"small_rcnn", "rt_detr_v2", "d_fine", "deimv2"}


@pytest.fixture
def pair(case, device):
    """The detector on the CPU, and its copy on the device."""
    detector = without_chance(case.make())
    return detector, copy.deepcopy(detector).to(device)


def difference(found, expected, of=torch.max) -> float:
    """The largest difference (or what `of` takes of them), as a share of the largest expected number."""
    assert found.shape == expected.shape
    if not expected.numel():
        return 0.0
    errors = (found.detach().cpu().double() - expected.detach().double()).abs()
    return (of(errors) / expected.detach().double().abs().max().clamp(min=1e-6)).item()


def test_predictions(case, pair, device, record_property):
    ours, theirs = (d.eval() for d in pair)
    images = make_images(SIZES).pad_to_multiple(ours.size_divisibility)
    expected, found = predict_all(ours, images), predict_all(theirs, images.to(device))
    typical = case.name in SENSITIVE
    of = torch.median if typical else torch.max
    worst = max(difference(found[name], value, of) for name, value in expected.items())
    record_property("median difference, of the sensitive" if typical else "difference", worst)
    assert worst < BOUND


def test_detections(case, pair, device):
    """Pairwise, so that two scores that agree in six digits may change places."""
    ours, theirs = (d.eval() for d in pair)
    images = make_images(SIZES)
    for expected, found in zip(ours.detect(images), theirs.detect(images.to(device)), strict=True):
        assert len(expected.boxes) > 3
        assert found.boxes.device.type == device.type
        same = (found.boxes.cpu()[:, None] - expected.boxes).abs().amax(-1) < 0.05  # pixels
        same &= (found.scores.cpu()[:, None] - expected.scores).abs() < BOUND
        same &= found.classes.cpu()[:, None] == expected.classes
        least = 0.5 if case.name in SENSITIVE else 0.97  # one at the limit of NMS may change with the last bit
        assert same.any(0).float().mean() > least
        assert same.any(1).float().mean() > least


def one_step(method, labeled: LabeledBatch, unlabeled: UnlabeledBatch):
    """The losses of a step after burn-in and the gradient of every weight."""
    torch.manual_seed(11)
    with RandomOfCPU():
        losses = method(labeled, unlabeled, 5)
        sum(losses.values()).backward()
    gradients = [w.grad.flatten() for w in method.student.parameters() if w.grad is not None]
    return losses, torch.cat(gradients)


@pytest.mark.parametrize("name", METHODS)
def test_one_step_of_a_method(case, pair, device, name, record_property):
    """Losses, gradients and the teacher after it."""
    kind, options = METHODS[name]
    here, there = (build_method(kind, detector, SCHEDULE, options).train() for detector in pair)
    labeled, unlabeled = make_labeled(SIZES), make_unlabeled(SIZES)
    expected, gradient = one_step(here, labeled, unlabeled)
    found, found_gradient = one_step(there, labeled.to(device), unlabeled.to(device))
    assert found.keys() == expected.keys()
    total = sum(expected.values()).item()
    worst = max(abs(found[key].item() - loss.item()) / total for key, loss in expected.items())
    apart = (found_gradient.cpu() - gradient).norm().item() / gradient.norm().item()
    which = " of the sensitive" if case.name in SENSITIVE else ""
    record_property(f"loss difference{which}", worst)
    record_property(f"gradient difference{which}", apart)
    assert all(loss.device.type == device.type for loss in found.values())
    if case.name not in SENSITIVE:
        assert worst < BOUND
        assert apart < 10 * BOUND
    assert torch.isfinite(found_gradient).all()


@pytest.mark.parametrize("case", [c for c in CASES if c.name in SENSITIVE], indirect=True, ids=lambda c: c.name)
def test_rounding_decides_about_the_sensitive(case):
    """Why their worst numbers are not compared: noise on the weights parts two runs on the CPU by more."""
    kind, options = METHODS["sed_plus"]
    detector = without_chance(case.make())
    steps = []
    for seed in (None, 0, 1, 2, 3):
        noisy = copy.deepcopy(detector)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for weight in noisy.parameters():
                    weight.mul_(1 + NOISE * torch.randn(weight.shape, generator=generator))
        method = build_method(kind, noisy, SCHEDULE, options).train()
        steps.append(one_step(method, make_labeled(SIZES), make_unlabeled(SIZES)))
    (losses, gradient), *others = steps
    total = sum(losses.values()).item()
    apart = [
        abs(other[key].item() - loss.item()) / total / BOUND for other, _ in others for key, loss in losses.items()
    ]
    apart += [((other - gradient).norm() / gradient.norm()).item() / (10 * BOUND) for _, other in others]
    assert max(apart) > 1


def test_the_teachers_update(pair, device):
    """Eq. 4, of weights and of batch norm's running statistics."""
    here, there = (build_method("supervised", detector, SCHEDULE) for detector in pair)
    for method in (here, there):
        with torch.no_grad():
            for weight in method.student.parameters():
                weight.mul_(1.01)
        method.update_teacher(5)
    found = there.teacher.state_dict()
    for name, value in here.teacher.state_dict().items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in NAMED], indirect=True, ids=lambda c: c.name)
def test_half_precision(case, pair, device, dtype, record_property):
    """Predictions within a tenth of float32's in the mean; all losses and gradients finite, the losses in float32."""
    _, detector = pair
    images = make_images(SIZES).pad_to_multiple(detector.size_divisibility).to(device)
    exact = predict_all(detector.eval(), images)
    with torch.autocast(device.type, dtype):
        low = predict_all(detector, images)
    name = next(iter(exact))
    apart = ((low[name] - exact[name]).abs().mean() / exact[name].abs().mean()).item()
    record_property("difference", apart)
    assert low[name].dtype == dtype
    if "query" not in case.heads or "detr" == case.name:  # elsewhere rounding may choose other locations as queries
        assert apart < 0.1
    method = build_method("sed", detector, SCHEDULE, METHODS["sed"][1]).to(device).train()
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16, init_scale=1.0)
    with torch.autocast(device.type, dtype):
        losses = method(make_labeled(SIZES).to(device), make_unlabeled(SIZES).to(device), 5)
    assert all(loss.dtype == torch.float32 for key, loss in losses.items() if not key.startswith("sup/"))
    assert all(torch.isfinite(loss) for loss in losses.values())
    scaler.scale(sum(losses.values())).backward()
    assert all(w.grad.isfinite().all() for w in detector.parameters() if w.grad is not None)
