"""A step with a query detector: which terms, weights and network passes, and the matching of the views."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sed.core.matching import match_views, query_consistency
from sed.core.reweighting import make_reweight
from sed.core.structures import Detections, Images, LabeledBatch, QueryPrediction
from sed.core.views import downscale, draw_scale
from sed.methods import sed as sed_module
from sed.methods.base import Schedule
from sed.methods.build import build_method
from sed.options.methods import PseudoLabelOptions, ReweightOptions, SEDOptions
from tests.reference.detectors import make_labeled, make_unlabeled
from tests.reference.queries import StubDetr

SCHEDULE = Schedule(burn_in=2, max_iter=10, first_drop=8)
SUP, SCALE, DISTILL = ({f"{term}/query_{part}" for part in ("cls", "box")} for term in ("sup", "scale", "distill"))
HEADS = pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "sigmoid"])


def make_method(options=None, name="sed", softmax=True, equivariant=True, schedule=SCHEDULE, apart=True):
    """`apart`: whether teacher and student have different weights, as in training."""
    torch.manual_seed(0)
    method = build_method(
        name, StubDetr(softmax, equivariant), schedule, None if name == "supervised" else options or SEDOptions()
    )
    if apart:
        with torch.no_grad():
            for weight in method.student.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return method.train()


def twice(batch):
    images = Images(torch.cat([batch.images.tensor] * 2), batch.images.sizes * 2)
    return LabeledBatch(images, batch.targets * 2)


def run(method, step=5, labeled=None, unlabeled=None):
    return method(labeled or make_labeled(), unlabeled or make_unlabeled(), step)


def values(losses):
    return {name: loss.item() for name, loss in losses.items()}


def count_passes(method):
    """The network passes of one step, in order: (student or teacher, method, side of the input, with gradient)."""
    passes = []
    for model, detector in (("student", method.student), ("teacher", method.teacher.module)):
        for name in ("encode", "queries"):
            original = getattr(detector, name)

            def counted(given, model=model, name=name, original=original):
                images = given if name == "encode" else given.images
                passes.append((model, name, images.padded_size[0], torch.is_grad_enabled()))
                return original(given)

            setattr(detector, name, counted)
    return passes


def spy_on_matching(monkeypatch):
    """The calls of match_views: (pairs, lambda)."""
    calls = []

    def spy(pairs, weight):
        calls.append((list(pairs), weight))
        return match_views(pairs, weight)

    monkeypatch.setattr(sed_module, "match_views", spy)
    return calls


# ---------------------------------------------------------------- terms, passes, one matching


@HEADS
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
def test_terms_passes_and_one_matching(softmax, options, terms, passes, monkeypatch):
    """docs/method.md 8: one pass a view, only for views that a term needs; one call matches all, in one transfer."""
    method = make_method(SEDOptions(**options), softmax=softmax, equivariant=False)
    seen = count_passes(method)
    calls = spy_on_matching(monkeypatch)
    transfers = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self, *args: transfers.append(self.shape) or original(self, *args))
    losses = run(method)
    assert set(losses) == SUP | terms
    assert seen == [(who, name, side, grad) for who, side, grad in passes for name in ("encode", "queries")]
    assert [len(pairs) for pairs, _ in calls] == [len(terms) // 2]
    assert transfers == [(len(terms), 16, 16)]  # [images of all terms, Q, Q]
    assert all(loss.dim() == 0 and torch.isfinite(loss) and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad.any() for p in method.student.parameters())


def test_without_both_terms_it_is_supervised_training(monkeypatch):
    calls = spy_on_matching(monkeypatch)
    assert set(run(make_method(SEDOptions(lambda_scale=0.0, lambda_distill=0.0)))) == SUP
    assert sum(len(pairs) for pairs, _ in calls) == 0


def test_burn_in_and_the_supervised_baseline_use_labelled_images_only(monkeypatch):
    calls = spy_on_matching(monkeypatch)
    method = make_method()
    assert [method.needs_unlabeled(step) for step in (0, 1, 2, 3)] == [False, False, True, True]
    assert set(method(make_labeled(), None, 0)) == SUP
    assert set(run(make_method(name="supervised"))) == SUP
    assert not calls


# ---------------------------------------------------------------- what the terms are


@HEADS
@pytest.mark.parametrize("reweight", ["histogram", "none", "ohem", "focal"])
@pytest.mark.parametrize(
    "more", [{}, {"scale_target": "teacher"}, {"scale_source": "weak"}], ids=["eq2", "anchored", "eq2-weak"]
)
def test_terms_equal_the_equations_on_the_stub_s_predictions(softmax, reweight, more):
    """Eq. 1 by hand: n_u / n_s = 2 / 4, lambdas, the ramp at its middle; lambda of Alg. 1 in the matching."""
    options = SEDOptions(
        lambda_scale=0.3, lambda_distill=0.7, lambda_iou=0.4, reweight=ReweightOptions(reweight, bins=5), **more
    )
    method = make_method(options, softmax=softmax, schedule=dataclasses.replace(SCHEDULE, ramp_steps=6))
    batch = make_unlabeled()
    losses = run(method, labeled=twice(make_labeled()), unlabeled=batch)  # step 5: 3 of 6 steps after the burn-in

    weak, strong = (view.pad_to_multiple(32) for view in (batch.weak, batch.strong))
    teacher, student = method.teacher.module.predict(weak), method.student.predict(strong)
    small = method.student.predict(downscale(weak, 1))
    full = {"eq2": student, "anchored": teacher, "eq2-weak": method.student.predict(weak)}[
        "anchored" if "scale_target" in more else "eq2-weak" if more else "eq2"
    ]
    scorer = make_reweight(reweight, bins=5)
    for term, weight, target, own in (("scale", 0.3, full, small), ("distill", 0.7, teacher, student)):
        (partners,) = match_views([(target, own)], 0.4)
        both_ways = term == "scale" and full is not teacher
        for part, loss in query_consistency(target, own, partners, scorer, both_ways)._asdict().items():
            torch.testing.assert_close(losses[f"{term}/query_{part}"], 2 / 4 * 3 / 6 * weight * loss)


def test_matching_gets_each_term_s_views_target_first_and_lambda(monkeypatch):
    calls = spy_on_matching(monkeypatch)
    method = make_method(SEDOptions(lambda_iou=0.25))
    batch = make_unlabeled()
    run(method, unlabeled=batch)
    ((pairs, weight),) = calls
    assert weight == 0.25
    (full, small), (teacher, student) = pairs
    assert torch.equal(teacher.logits, method.teacher.module.predict(batch.weak).logits)
    assert full is student
    assert torch.equal(student.logits, method.student.predict(batch.strong).logits)
    assert torch.equal(small.logits, method.student.predict(downscale(batch.weak, 1)).logits)
    assert [view.logits.requires_grad for view in (teacher, student, small)] == [False, True, True]


@pytest.mark.parametrize(("target", "reached"), [("student", [True, True]), ("teacher", [False, True])])
def test_equation_2_has_a_gradient_to_both_views_and_the_anchored_term_to_one(target, reached):
    """With the predictions on X and X^ as leaves: which of them get a gradient of the scale term."""
    method = make_method(SEDOptions(lambda_distill=0.0, scale_target=target))
    seen = []
    for detector in (method.student, method.teacher.module):

        def leaf(features, original=detector.queries):
            found = original(features)
            logits, boxes = (x.detach().requires_grad_() for x in (found.logits, found.boxes))
            seen.append((features.images.padded_size[0], logits, boxes))
            return dataclasses.replace(found, logits=logits, boxes=boxes)

        detector.queries = leaf
    losses = run(method)
    sum(losses[key] for key in SCALE).backward()
    assert [side for side, _, _ in seen] == [64, 32]
    for leaves in zip(*(tensors for _, *tensors in seen), strict=True):
        assert [x.grad is not None and bool(x.grad.any()) for x in leaves] == reached


def test_the_anchored_scale_term_does_not_use_the_strong_view():
    options = SEDOptions(lambda_distill=0.0, scale_target="teacher")
    batch = make_unlabeled()
    other = dataclasses.replace(batch, strong=make_unlabeled(seed=50).strong)
    assert values(run(make_method(options), unlabeled=batch)) == values(run(make_method(options), unlabeled=other))
    paper = SEDOptions(lambda_distill=0.0)
    one, two = (values(run(make_method(paper), unlabeled=b)) for b in (batch, other))
    assert all(one[key] != two[key] for key in SCALE)


# ---------------------------------------------------------------- limits


@HEADS
@pytest.mark.parametrize("options", [{"scale_source": "weak"}, {"scale_target": "teacher"}], ids=["eq2", "anchored"])
@pytest.mark.parametrize("s", [1, 2])
def test_a_scale_equivariant_detector_has_no_scale_loss(softmax, options, s):
    """docs/method.md 10.6: exactly 0 and no gradient, though the queries of X^ are in another order."""
    step = next(step for step in range(2, 99) if draw_scale(step, s) == s)
    options = SEDOptions(lambda_distill=0.0, max_scale=s, **options)
    method = make_method(options, softmax=softmax, apart=False)
    losses = run(method, step)
    assert max(abs(losses[key].item()) for key in SCALE) < 1e-9  # 0 but for the rounding of batched kernels
    sum(losses[key] for key in SCALE).backward()
    assert max(p.grad.abs().max().item() for p in method.student.parameters()) < 1e-6
    other = make_method(options, softmax=softmax, apart=False, equivariant=False)
    losses = run(other, step)
    assert all(losses[key].item() > 1e-6 for key in SCALE)
    sum(losses[key] for key in SCALE).backward()
    assert other.student.classes.weight.grad.any()
    assert other.student.places.weight.grad.any()


@HEADS
def test_distillation_is_zero_where_teacher_and_student_see_the_same(softmax):
    method = make_method(SEDOptions(lambda_scale=0.0), softmax=softmax, apart=False)
    batch = make_unlabeled()
    losses = run(method, unlabeled=dataclasses.replace(batch, strong=batch.weak))
    assert max(abs(losses[key].item()) for key in DISTILL) < 1e-9
    sum(losses[key] for key in DISTILL).backward()
    assert max(p.grad.abs().max().item() for p in method.student.parameters()) < 1e-6


@HEADS
def test_a_step_without_any_confident_query_trains(softmax):
    method = make_method(softmax=softmax)
    with torch.no_grad():
        for detector in (method.student, method.teacher.module):
            (detector.classes.bias[-1:] if softmax else detector.classes.bias).add_(9 if softmax else -9)
    losses = run(method)
    assert method.metrics["teacher_positives"] == 0
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.student.parameters())


@HEADS
def test_mixed_precision_gives_float32_losses(softmax):
    method, exact = make_method(softmax=softmax), make_method(softmax=softmax)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = run(method)
    for key in SCALE | DISTILL:
        assert losses[key].dtype == torch.float32
        assert losses[key].item() == pytest.approx(run(exact)[key].item(), rel=0.2)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.student.parameters())


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    ("softmax", "logits", "positives"),
    [
        # softmax, "no object" last: e^2 / (e^2 + 3) = .71 counts once, .71 of "no object" does not, all equal does not
        (True, [[2.0, 0, 0, 0], [0, 0, 0, 2], [0, 0, 0, 0], [0, 9, 0, 0]], 2),
        # sigmoid: a query with any class above 0 counts
        (False, [[2.0, -1, -1], [-1, -1, 0.1], [-1, -1, -1], [-5, 3, 4]], 3),
    ],
)
def test_teacher_positives_counts_confident_queries(softmax, logits, positives):
    method = make_method(softmax=softmax)
    rows = torch.tensor(logits).repeat(4, 1).expand(2, 16, -1)  # 2 images of 4 times these 4 queries
    method.teacher.module.queries = lambda features: QueryPrediction(rows, torch.rand(2, 16, 4), softmax)
    run(method)
    assert method.metrics["teacher_positives"].item() == 8 * positives


# ---------------------------------------------------------------- the pseudo-label baseline


@pytest.mark.parametrize("box_loss", [False, True])
def test_pseudo_labels_train_classes_and_with_box_loss_boxes(box_loss, monkeypatch):
    """It trains by `supervised_losses` on the strong view, at weight n_u / n_s; nothing is matched."""
    options = PseudoLabelOptions(weight=3.0, box_loss=box_loss)
    method = make_method(options, name="pseudo_label")
    found = Detections(
        torch.tensor([[4.0, 4, 30, 36], [20, 10, 44, 40], [1, 1, 9, 9]]),
        torch.tensor([0.9, 0.7, 0.69]),
        torch.tensor([0, 2, 1]),
    )
    method.teacher.module.detect = lambda images: [found] * len(images)
    taught, matched = [], spy_on_matching(monkeypatch)
    original = method.student.supervised_losses
    method.student.supervised_losses = lambda batch: taught.append(batch) or original(batch)
    batch = make_unlabeled()
    losses = run(method, labeled=twice(make_labeled()), unlabeled=batch)
    assert set(losses) == SUP | {"pseudo/query_cls"} | ({"pseudo/query_box"} if box_loss else set())
    assert len(taught) == 2
    assert torch.equal(taught[1].images.tensor, batch.strong.tensor)
    assert [t.classes.tolist() for t in taught[1].targets] == [[0, 2]] * 2
    expected = 3 * 2 / 4 * method.student.predict(batch.strong).logits.square().mean()
    torch.testing.assert_close(losses["pseudo/query_cls"], expected)
    assert method.metrics["teacher_positives"] == 4
    assert not matched
