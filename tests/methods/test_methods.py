"""The methods' steps: which terms, with which weights, from which network passes, and what gets a gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from sed.core.structures import Detections, LabeledBatch
from sed.methods.base import Schedule
from sed.methods.build import build_method
from sed.methods.pseudo_label import confident_targets
from sed.methods.sed import SED
from sed.options.methods import PseudoLabelOptions, SEDOptions, SEDPlusOptions
from tests.reference.detectors import make_detector, make_labeled, make_unlabeled

SCHEDULE = Schedule(burn_in=2, max_iter=10, first_drop=8)
SUP = {"sup/dense_cls", "sup/dense_box", "sup/region_cls", "sup/region_box"}
SCALE = {"scale/dense_cls", "scale/dense_box", "scale/region_cls", "scale/region_box"}
DISTILL = {"distill/dense_cls", "distill/dense_box", "distill/region_cls", "distill/region_box"}


def make_method(options=None, name="sed", detector="small_rcnn", schedule=SCHEDULE):
    options = options or SEDOptions(regions_per_view=8)
    method = build_method(name, make_detector(detector), schedule, options)
    return method.train()


def run(method, step=5, labeled=None, unlabeled=None):
    torch.manual_seed(11)  # torchvision samples anchors at random
    return method(labeled or make_labeled(), unlabeled or make_unlabeled(), step)


def count_passes(method):
    """The network passes of one step, in order: (student or teacher, side of the input, with gradient)."""
    passes = []
    for name, detector in (("student", method.student), ("teacher", method.teacher.module)):
        original = detector.encode

        def encode(images, name=name, original=original):
            passes.append((name, images.padded_size[0], torch.is_grad_enabled()))
            return original(images)

        detector.encode = encode
    return passes


@pytest.mark.parametrize(
    ("options", "terms", "passes"),
    [
        ({}, SCALE | DISTILL, [("teacher", 64, False), ("student", 64, True), ("student", 32, True)]),
        (
            {"scale_target": "teacher"},
            SCALE | DISTILL,
            [("teacher", 64, False), ("student", 64, True), ("student", 32, True)],
        ),
        ({"lambda_scale": 0.0}, DISTILL, [("teacher", 64, False), ("student", 64, True)]),
        ({"lambda_distill": 0.0}, SCALE, [("student", 64, True), ("student", 32, True)]),
        (
            {"lambda_distill": 0.0, "scale_target": "teacher"},
            SCALE,
            [("teacher", 64, False), ("student", 32, True)],
        ),
        (
            {"scale_source": "weak"},
            SCALE | DISTILL,
            [("teacher", 64, False), ("student", 64, True), ("student", 64, True), ("student", 32, True)],
        ),
    ],
)
def test_terms_and_passes(options, terms, passes):
    """docs/method.md 8: one pass a view, and only for views that a term needs."""
    method = make_method(SEDOptions(regions_per_view=8, **options))
    seen = count_passes(method)
    losses = run(method)
    assert set(losses) == SUP | terms
    assert seen[0] == ("student", 64, True)  # the labelled images
    assert seen[1:] == passes
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.student.parameters())


def test_one_stage_has_dense_terms_only():
    method = make_method(detector="resnet_retinanet")
    losses = run(method)
    assert set(losses) == {f"{t}/dense_{p}" for t in ("sup", "scale", "distill") for p in ("cls", "box")}
    sum(losses.values()).backward()


def test_burn_in_is_supervised_and_draws_nothing():
    method = make_method()
    assert [method.needs_unlabeled(step) for step in (0, 1, 2, 3)] == [False, False, True, True]
    assert set(method(make_labeled(), None, 0)) == SUP
    assert not build_method("supervised", make_detector(), SCHEDULE).needs_unlabeled(5)


def test_weights_of_equation_1():
    """Each term is linear in its lambda and in n_u / n_s, and the ramp scales all of them."""
    base = run(make_method())
    doubled = run(make_method(SEDOptions(regions_per_view=8, lambda_scale=1.0, lambda_distill=3.0)))
    halved = run(make_method(), labeled=_twice(make_labeled()))
    ramped = run(make_method(schedule=dataclasses.replace(SCHEDULE, ramp_steps=6)), step=5)
    for key in SCALE:
        assert doubled[key].item() == pytest.approx(2 * base[key].item(), rel=1e-4)
    for key in DISTILL:
        assert doubled[key].item() == pytest.approx(3 * base[key].item(), rel=1e-4)
    for key in SCALE | DISTILL:
        assert halved[key].item() == pytest.approx(base[key].item() / 2, rel=1e-4)
        assert ramped[key].item() == pytest.approx(base[key].item() * 0.5, rel=1e-4)


def _twice(batch):
    images = dataclasses.replace(
        batch.images, tensor=torch.cat([batch.images.tensor] * 2), sizes=batch.images.sizes * 2
    )
    return LabeledBatch(images, batch.targets * 2)


def test_distillation_is_zero_where_teacher_and_student_see_the_same():
    """Equal weights and equal views: L_distill is 0 and has no gradient (docs/method.md 10.6)."""
    method = make_method(SEDOptions(regions_per_view=8, lambda_scale=0.0))
    batch = make_unlabeled()
    same = dataclasses.replace(batch, strong=batch.weak)
    losses = run(method, unlabeled=same)
    total = sum(losses[key] for key in DISTILL)
    assert total.item() == pytest.approx(0.0, abs=1e-9)
    total.backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in method.student.parameters())


def test_the_anchored_scale_term_has_the_teacher_as_its_target():
    """Its target is the teacher's prediction; the student's full-size view takes no part (docs/method.md 11)."""
    options = SEDOptions(regions_per_view=8, scale_target="teacher", lambda_distill=0.0)
    method = make_method(options)
    before = {k: v.item() for k, v in run(method).items() if k.startswith("scale/")}
    batch = make_unlabeled()
    other = dataclasses.replace(batch, strong=make_unlabeled(seed=50).strong)
    after = {k: v.item() for k, v in run(method, unlabeled=other).items() if k.startswith("scale/")}
    assert before == after
    assert before["scale/region_cls"] > 0


def test_scale_term_in_the_paper_uses_the_strong_view():
    method = make_method(SEDOptions(regions_per_view=8, lambda_distill=0.0))
    batch = make_unlabeled()
    other = dataclasses.replace(batch, strong=make_unlabeled(seed=50).strong)
    assert run(method)["scale/dense_cls"] != run(method, unlabeled=other)["scale/dense_cls"]


def test_smaller_scales_are_drawn_and_padded_for():
    method = make_method(SEDOptions(regions_per_view=8, max_scale=2))
    seen = count_passes(method)
    for step in range(2, 14):
        run(method, step=step)
    pairs = {(seen[i + 1][1], seen[i + 3][1]) for i in range(0, len(seen), 4)}  # (teacher's side, small view's side)
    assert pairs == {(64, 32), (128, 32)}  # s = 1 and s = 2: padded to 32 x 2^s, then divided by 2^s


def test_teacher_is_a_copy_until_burn_in_ends_then_follows_by_equation_4():
    method = make_method()
    weight = lambda d: d.model.rpn.head.cls_logits.weight  # noqa: E731
    with torch.no_grad():
        weight(method.student).add_(1.0)
    method.update_teacher(1)
    assert torch.equal(weight(method.teacher.module), weight(method.student))
    old = weight(method.teacher.module).clone()
    with torch.no_grad():
        weight(method.student).add_(1.0)
    method.update_teacher(2)
    torch.testing.assert_close(weight(method.teacher.module), 0.99 * old + 0.01 * weight(method.student))
    assert not method.train().teacher.module.training


def test_the_supervised_baseline_ignores_unlabelled_images():
    method = build_method("supervised", make_detector(), SCHEDULE).train()
    assert set(run(method)) == SUP


class TestPseudoLabel:
    """The pseudo-label baseline, by Unbiased Teacher's rules."""

    def method(self, **options):
        return make_method(PseudoLabelOptions(**options), name="pseudo_label")

    def test_threshold_and_terms(self):
        method = self.method()
        found = Detections(
            torch.tensor([[4.0, 4, 30, 36], [20, 10, 44, 40], [1, 1, 9, 9]]),
            torch.tensor([0.9, 0.7, 0.69]),
            torch.tensor([0, 2, 1]),
        )
        method.teacher.module.detect_from = lambda *_: [found] * 2
        labels = confident_targets([found] * 2, 0.7)
        assert [t.classes.tolist() for t in labels] == [[0, 2], [0, 2]]
        losses = run(method)
        assert set(losses) == SUP | {"pseudo/dense_cls", "pseudo/region_cls"}
        assert method.metrics["teacher_positives"] == 4
        with_boxes = self.method(box_loss=True)
        with_boxes.teacher.module.detect_from = method.teacher.module.detect_from
        assert set(run(with_boxes)) == SUP | {f"pseudo/{k.removeprefix('sup/')}" for k in SUP}

    def test_weight_is_linear(self):
        light, heavy = run(self.method(weight=1.0)), run(self.method(weight=4.0))
        for key in ("pseudo/dense_cls", "pseudo/region_cls"):
            assert heavy[key].item() == pytest.approx(4 * light[key].item(), rel=1e-5)

    def test_no_pseudo_label_trains(self):
        """The teacher is confident of nothing: every anchor and region is background, and the step still trains."""
        losses = run(self.method(threshold=1.1))
        assert all(torch.isfinite(v) for v in losses.values())
        sum(losses.values()).backward()


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="unknown method 'sedd'"):
        build_method("sedd", make_detector(), SCHEDULE)


def test_options_of_another_method_are_refused():
    with pytest.raises(ValueError, match="method 'sed': expected SEDOptions, got SEDPlusOptions"):
        build_method("sed", make_detector(), SCHEDULE, SEDPlusOptions())


def test_the_drawn_scale_follows_the_seed():
    drawn = []
    for seed in (0, 1):
        method = make_method(
            SEDOptions(regions_per_view=8, max_scale=2), schedule=dataclasses.replace(SCHEDULE, seed=seed)
        )
        seen = count_passes(method)
        for step in range(2, 14):
            run(method, step=step)
        drawn.append([seen[i + 1][1] for i in range(0, len(seen), 4)])
    assert drawn[0] != drawn[1]


def test_a_method_is_a_module_that_ddp_could_wrap():
    method = make_method()
    trained = [p for p in method.parameters() if p.requires_grad]
    assert len(trained) == sum(1 for _ in method.student.parameters())
    assert isinstance(method, nn.Module)
    assert isinstance(method, SED)
