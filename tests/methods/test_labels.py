"""Hard pseudo-labels: what becomes one, at which size, and where SED and the rival use them."""

from __future__ import annotations

import pytest
import torch

from sed.core.box_terms import BoxTerm
from sed.core.objects import object_targets
from sed.core.structures import Detections, Targets
from sed.methods.base import Schedule
from sed.methods.build import build_method
from sed.methods.labels import confident_targets, downscale_targets
from sed.methods.pseudo_label import PseudoLabelOptions
from sed.methods.sed import SEDOptions
from tests.reference.detectors import make_detector, make_labeled, make_unlabeled
from tests.reference.transformers_case import FAMILY, TransformersCase

SCHEDULE = Schedule(burn_in=2, max_iter=10, first_drop=8)
FOUND = Detections(
    torch.tensor([[4.0, 4, 30, 36], [20, 10, 44, 40], [1, 1, 9, 9]]),
    torch.tensor([0.9, 0.7, 0.69]),
    torch.tensor([0, 2, 1]),
)
BY_OBJECTS = {
    "regions_per_view": 8,
    "lambda_scale": 2.0,
    "lambda_distill": 2.0,
    "distill_target": "objects",
}


def make_method(detector="small_rcnn", name="sed", sed=None, labels=None):
    student = TransformersCase(detector).build(num_labels=4) if detector in FAMILY else make_detector(detector)
    method = build_method(name, student, SCHEDULE, sed=sed, pseudo_label=labels).train()
    return finding(method, FOUND)


def finding(method, found):
    """The method with a teacher that finds this in both images."""
    method.teacher.module.detect = method.teacher.module.detect_from = lambda *_: [found] * 2
    return method


def run(method, unlabeled=None):
    torch.manual_seed(11)
    return method(make_labeled(), unlabeled or make_unlabeled(), 5)


def test_halved_labels():
    told = (Targets(torch.tensor([[4.0, 6, 20, 30]]), torch.tensor([2])), Targets(torch.zeros(0, 4), torch.zeros(0)))
    assert downscale_targets(told)[0].boxes.tolist() == [[2, 3, 10, 15]]
    assert downscale_targets(told, 2)[0].boxes.tolist() == [[1, 1.5, 5, 7.5]]
    assert downscale_targets(told)[1].boxes.shape == (0, 4)


@pytest.mark.parametrize("detector", ["resnet_retinanet", "rt_detr"])
@pytest.mark.parametrize("boxes", [False, True])
def test_by_objects_without_a_region_head_sed_is_the_rival_with_the_half_size_view(detector, boxes):
    """The same labels, the same losses, the same weight: there is no region head to tell anything softer."""

    def losses(name, **options):
        torch.manual_seed(0)
        method = make_method(detector, name, **options)
        original = method.student.supervised_losses

        def seeded(batch):  # RT-DETR's denoising draws; the two methods take the views in another order
            torch.manual_seed(batch.images.tensor.shape[-1])
            return original(batch)

        method.student.supervised_losses = seeded
        return run(method)

    sed = losses("sed", sed=SEDOptions(**BY_OBJECTS, box_weight=float(boxes)))
    rival = losses("pseudo_label", labels=PseudoLabelOptions(weight=2.0, half_size=True, box_loss=boxes))
    names = {"pseudo": "distill", "pseudo_half": "scale"}
    renamed = {}
    for key, loss in rival.items():
        term, part = key.split("/")
        renamed[f"{names.get(term, term)}/{part}"] = loss.item()
    assert {key: loss.item() for key, loss in sed.items()} == pytest.approx(renamed, rel=1e-5)


@pytest.mark.parametrize("kind", ["l2", "l1", "giou"])
def test_regions_are_told_by_the_objects(kind):
    """The region head's part by hand: both networks' best proposals and the objects, one region after another."""
    options = SEDOptions(**BY_OBJECTS, reweight="none", box_weight=0.5, box_kind=kind)
    method, batch, seen = make_method(sed=options), make_unlabeled(), []
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
    for term, s, (own_features, labels, proposals) in zip(("scale", "distill"), (1, 0), seen, strict=True):
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
                told = object_targets(regions, own, FOUND.boxes[:2], classes, coder)
                boxes[n] = regions / 2**s
                said = method.student.regions(own_features, boxes)
                t, p = told.logits.softmax(-1), said.logits.log_softmax(-1)
                cls += float((torch.special.xlogy(t, t) - t * p).sum())
                distance = BoxTerm(kind).of_deltas(told.deltas, said.deltas, coder, False)  # [R, K]
                box += float((t[:, :-1] * distance).sum())
                count += len(regions)
        assert losses[f"{term}/region_cls"].item() == pytest.approx(2 * cls / count, rel=1e-4)
        assert losses[f"{term}/region_box"].item() == pytest.approx(2 * 0.5 * box / count, rel=1e-4)


def test_by_objects_costs_one_pass_a_view():
    method = make_method(sed=SEDOptions(**BY_OBJECTS))
    seen = []
    for who in (method.student, method.teacher.module):
        original = who.encode
        who.encode = lambda images, original=original: seen.append(images.padded_size[0]) or original(images)
    losses = run(method)
    assert {key.split("/")[0] for key in losses} == {"sup", "scale", "distill"}
    assert seen == [64, 64, 32, 64]  # labelled, teacher, half-size, strong
    sum(losses.values()).backward()


def test_each_term_can_be_left_out_and_weighs_by_its_lambda():
    whole = run(make_method(sed=SEDOptions(**BY_OBJECTS)))
    alone = run(make_method(sed=SEDOptions(**{**BY_OBJECTS, "lambda_scale": 0.0})))
    assert {key.split("/")[0] for key in alone} == {"sup", "distill"}
    heavy = run(make_method(sed=SEDOptions(**{**BY_OBJECTS, "lambda_scale": 6.0})))
    assert heavy["scale/region_cls"].item() == pytest.approx(3 * whole["scale/region_cls"].item(), rel=1e-4)
    assert heavy["distill/region_cls"].item() == pytest.approx(whole["distill/region_cls"].item(), rel=1e-4)


def test_the_small_view_may_be_strong():
    weak, strong = (
        run(make_method(sed=SEDOptions(**BY_OBJECTS, small_view=view)))["scale/region_cls"]
        for view in ("weak", "strong")
    )
    assert weak != strong


def test_what_the_teacher_found_is_counted_anew_in_each_step():
    method = make_method(sed=SEDOptions(**BY_OBJECTS))
    run(method)
    assert method.metrics["teacher_positives"] == 4
    nothing = Detections(FOUND.boxes[:0], FOUND.scores[:0], FOUND.classes[:0])
    losses = run(finding(method, nothing))
    assert method.metrics["teacher_positives"] == 0
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


def test_what_is_sure_has_an_extent_and_is_float32():
    boxes = torch.tensor([[0.0, 0, 4, 4], [5, 5, 5, 9], [1, 1, 8, 8]], dtype=torch.bfloat16)
    labels = confident_targets([Detections(boxes, torch.tensor([0.9, 0.9, 0.2]), torch.tensor([0, 1, 2]))], 0.7)
    assert labels[0].boxes.tolist() == [[0, 0, 4, 4]]
    assert labels[0].boxes.dtype == torch.float32
    assert labels[0].classes.tolist() == [0]


@pytest.mark.parametrize("name", ["sed", "pseudo_label"])
def test_the_teacher_works_in_float32_under_autocast(name):
    labels = PseudoLabelOptions(threshold=0.0, half_size=True, box_loss=True)
    options = SEDOptions(**BY_OBJECTS, threshold=0.0)
    method = build_method(name, make_detector(), SCHEDULE, sed=options, pseudo_label=labels).train()
    seen, original = [], method.teacher.module.regions
    method.teacher.module.regions = lambda f, b: seen.append(next(iter(f.maps.values())).dtype) or original(f, b)
    torch.manual_seed(11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method(make_labeled(), make_unlabeled(), 5)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(dtype == torch.float32 for dtype in seen)
    sum(losses.values()).backward()
