"""Pseudo-labels: which detections become one, at which size, and how sed_plus trains on them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from sed.core.consistency import absolute_error
from sed.core.structures import Detections, Targets
from sed.core.views import draw_size
from sed.methods.base import Schedule
from sed.methods.build import build_method
from sed.methods.pseudo_label import confident_targets, scale_targets
from sed.methods.sed_plus import correct_by_pseudo_labels
from sed.options.methods import PseudoLabelOptions, SEDPlusOptions
from tests.reference.detectors import make_detector, make_labeled, make_unlabeled
from tests.reference.transformers_case import FAMILY, TransformersCase

SCHEDULE = Schedule(burn_in=2, max_iter=10, first_drop=8)
FOUND = Detections(
    torch.tensor([[4.0, 4, 30, 36], [20, 10, 44, 40], [1, 1, 9, 9]]),
    torch.tensor([0.9, 0.7, 0.69]),
    torch.tensor([0, 2, 1]),
)
OPTIONS = SEDPlusOptions(regions_per_view=8, weight=1.0, half_size_weight=1.0)


def make_method(detector="small_rcnn", name="sed_plus", options=OPTIONS):
    student = TransformersCase(detector).build(num_labels=4) if detector in FAMILY else make_detector(detector)
    method = build_method(name, student, SCHEDULE, options).train()
    return finding(method, FOUND)


def finding(method, found):
    """The method, with a teacher whose detections in both images are `found`."""
    method.teacher.module.detect = method.teacher.module.detect_from = lambda *_: [found] * 2
    return method


def run(method, unlabeled=None):
    torch.manual_seed(11)
    return method(make_labeled(), unlabeled or make_unlabeled(), 5)


def test_scaled_targets():
    targets = (Targets(torch.tensor([[4.0, 6, 20, 30]]), torch.tensor([2])), Targets(torch.zeros(0, 4), torch.zeros(0)))
    assert scale_targets(targets, 0.5)[0].boxes.tolist() == [[2, 3, 10, 15]]
    assert scale_targets(targets, 0.25)[0].boxes.tolist() == [[1, 1.5, 5, 7.5]]
    assert scale_targets(targets, 0.5)[1].boxes.shape == (0, 4)


@pytest.mark.parametrize("detector", ["resnet_retinanet", "rt_detr"])
def test_without_a_region_head_sed_plus_is_the_pseudo_label_baseline_with_the_half_size_view(detector):
    """The same pseudo-labels, losses and weight: without a region head there are no soft targets."""

    def losses(name, options):
        torch.manual_seed(0)
        method = make_method(detector, name, options)
        original = method.student.supervised_losses

        def seeded(batch):  # RT-DETR's denoising draws; the two methods take the views in another order
            torch.manual_seed(batch.images.tensor.shape[-1])
            return original(batch)

        method.student.supervised_losses = seeded
        return run(method)

    plus = losses("sed_plus", OPTIONS)
    baseline = losses("pseudo_label", PseudoLabelOptions(weight=1.0, half_size=True, box_loss=True))
    found = {key: loss.item() for key, loss in plus.items()}
    assert found == pytest.approx({key: loss.item() for key, loss in baseline.items()}, rel=1e-5)


@pytest.mark.parametrize("target", ["distribution", "hard"])
def test_regions_are_trained_on_the_teachers_predictions_corrected_by_its_detections(target):
    """The region losses by hand: the best proposals of teacher and student and the pseudo-labels, region by region."""
    options = dataclasses.replace(OPTIONS, region_target=target)
    method, batch, seen = make_method(options=options), make_unlabeled(), []
    original = method.student.proposal_losses

    def proposal_losses(features, targets):
        parts, proposals = original(features, targets)
        seen.append((features, targets, proposals))
        return parts, proposals

    method.student.proposal_losses = proposal_losses
    losses = run(method, batch)
    coder, teacher = method.student.box_coder_weights["region"], method.teacher.module
    features = teacher.encode(batch.weak)
    theirs = teacher.propose(features, teacher.dense(features), 8)
    for term, s, (own_features, labels, proposals) in zip(("pseudo_half", "pseudo"), (1, 0), seen, strict=True):
        assert all(len(p) > 8 for p in proposals)
        assert [t.boxes.tolist() for t in labels] == [(FOUND.boxes[:2] / 2**s).tolist()] * 2
        cls, box, count = 0.0, 0.0, 0
        with torch.no_grad():
            for n in range(2):
                regions = torch.cat([theirs[n], proposals[n][:8] * 2**s, FOUND.boxes[:2]])
                boxes = [regions[:0]] * 2
                boxes[n] = regions
                own = teacher.regions(features, boxes)
                boxes[n] = FOUND.boxes[:2]
                classes = teacher.regions(features, boxes).logits
                classes[:, -1] = -1e4
                if target == "hard":
                    own, classes = (harden(own), harden(classes))
                targets = correct_by_pseudo_labels(regions, own, FOUND.boxes[:2], classes, coder)
                boxes[n] = regions / 2**s
                predicted = method.student.regions(own_features, boxes)
                t, p = targets.logits.softmax(-1), predicted.logits.log_softmax(-1)
                cls += float((torch.special.xlogy(t, t) - t * p).sum())
                distance = absolute_error(targets.deltas, predicted.deltas)  # [R, K]
                box += float((t[:, :-1] * distance).sum())
                count += len(regions)
        assert losses[f"{term}/region_cls"].item() == pytest.approx(cls / count, rel=1e-4)
        assert losses[f"{term}/region_box"].item() == pytest.approx(box / count, rel=1e-4)


def harden(prediction):
    """Logits, or a prediction with logits, that give the most likely class the probability 1."""
    if isinstance(prediction, torch.Tensor):
        return torch.nn.functional.one_hot(prediction.argmax(-1), prediction.shape[-1]) * 2e4 - 1e4
    return dataclasses.replace(prediction, logits=harden(prediction.logits))


def test_a_step_costs_one_pass_a_view():
    method = make_method()
    seen = []
    for model in (method.student, method.teacher.module):
        original = model.encode
        model.encode = lambda images, original=original: seen.append(images.padded_size[0]) or original(images)
    losses = run(method)
    assert {key.split("/")[0] for key in losses} == {"sup", "pseudo_half", "pseudo"}
    assert seen == [64, 64, 32, 64]  # labelled, teacher, half-size, strong
    sum(losses.values()).backward()


def test_each_view_can_be_left_out_and_weighs_by_its_weight():
    whole = run(make_method())
    alone = run(make_method(options=dataclasses.replace(OPTIONS, half_size_weight=0.0)))
    assert {key.split("/")[0] for key in alone} == {"sup", "pseudo"}
    half = run(make_method(options=dataclasses.replace(OPTIONS, weight=0.0)))
    assert {key.split("/")[0] for key in half} == {"sup", "pseudo_half"}
    heavy = run(make_method(options=dataclasses.replace(OPTIONS, half_size_weight=3.0)))
    key = "pseudo_half/region_cls"
    assert heavy[key].item() == pytest.approx(3 * whole[key].item(), rel=1e-4)
    assert heavy["pseudo/region_cls"].item() == pytest.approx(whole["pseudo/region_cls"].item(), rel=1e-4)


@pytest.mark.parametrize("detector", ["small_rcnn", "resnet_retinanet", "rt_detr"])
def test_the_strong_view_has_the_size_of_its_step(detector):
    """Its pixels, pseudo-labels and regions are those of the weak view at that size; another step draws another."""
    options = dataclasses.replace(OPTIONS, least_scale=0.4, half_size_weight=0.0)
    method, batch = make_method(detector, options=options), make_unlabeled()
    scales = [draw_size(step, 0.4, SCHEDULE.seed) for step in (5, 6)]
    assert 0.4 <= min(scales) < max(scales) <= 1
    for step, scale in zip((5, 6), scales, strict=True):
        (view,) = method.views(batch, step)
        assert view.scale == scale
        sides = [math.floor(side * scale) for side in batch.strong.padded_size]
        assert list(view.images.tensor.shape[2:]) == sides
        seen = []
        name = "proposal_losses" if "region" in method.student.heads else "supervised_losses"
        original = getattr(method.student, name)
        setattr(method.student, name, lambda *a, original=original, seen=seen: seen.append(a) or original(*a))
        torch.manual_seed(11)
        losses = method(make_labeled(), batch, step)
        setattr(method.student, name, original)
        targets = seen[-1][1] if name == "proposal_losses" else seen[-1][0].targets
        for target in targets:
            torch.testing.assert_close(target.boxes, FOUND.boxes[:2] * scale)
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()


def test_confident_detections_are_counted_anew_in_each_step():
    method = make_method()
    run(method)
    assert method.metrics["teacher_positives"] == 4
    nothing = Detections(FOUND.boxes[:0], FOUND.scores[:0], FOUND.classes[:0])
    losses = run(finding(method, nothing))
    assert method.metrics["teacher_positives"] == 0
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


def test_confident_targets_have_an_extent_and_are_float32():
    boxes = torch.tensor([[0.0, 0, 4, 4], [5, 5, 5, 9], [1, 1, 8, 8]], dtype=torch.bfloat16)
    labels = confident_targets([Detections(boxes, torch.tensor([0.9, 0.9, 0.2]), torch.tensor([0, 1, 2]))], 0.7)
    assert labels[0].boxes.tolist() == [[0, 0, 4, 4]]
    assert labels[0].boxes.dtype == torch.float32
    assert labels[0].classes.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sed_plus", dataclasses.replace(OPTIONS, threshold=0.0)),
        ("pseudo_label", PseudoLabelOptions(threshold=0.0, half_size=True, box_loss=True)),
    ],
    ids=["sed_plus", "pseudo_label"],
)
def test_the_teacher_works_in_float32_under_autocast(name, options):
    method = build_method(name, make_detector(), SCHEDULE, options).train()
    seen, original = [], method.teacher.module.regions
    method.teacher.module.regions = lambda f, b: seen.append(next(iter(f.maps.values())).dtype) or original(f, b)
    torch.manual_seed(11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method(make_labeled(), make_unlabeled(), 5)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(dtype == torch.float32 for dtype in seen)
    sum(losses.values()).backward()
