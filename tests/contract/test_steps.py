"""The contract of sed.detectors.base in training and inference: the stock model's own losses and detections, its
weights' names, and one whole step of each method, for every detector of every installed engine.

Shape shorthand: see sed.core.structures.
"""

from __future__ import annotations

import copy
from fnmatch import fnmatch

import pytest
import torch

from sed.core.teacher import Teacher
from sed.methods.base import Schedule
from sed.methods.build import build_method
from sed.options.methods import PseudoLabelOptions, SEDOptions, SEDPlusOptions
from tests.reference.cases import two_stage
from tests.reference.detectors import make_images, make_labeled, make_unlabeled, predict_all

SIZES = ((64, 64), (50, 60))
SCHEDULE = Schedule(burn_in=2, max_iter=10, first_drop=8)


def matches(name, patterns):
    return any(fnmatch(name, pattern) for pattern in patterns)


@pytest.mark.parametrize("empty", [False, True])
def test_supervised_losses_equal_the_stock_models(case, detector, empty):
    batch = make_labeled(SIZES, empty=empty)
    stock = case.stock_losses(detector, batch, seed=3)
    torch.manual_seed(3)
    ours = detector.train().supervised_losses(batch)
    assert set(ours) == set(stock) == {f"{head}_{kind}" for head in case.heads for kind in ("cls", "box")}
    total = sum(stock.values()).item()  # a part may be the rest of it
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(stock[name].item(), abs=1e-6 * max(1, total), rel=1e-6), name
        assert torch.isfinite(loss)
        assert loss > 0 or (empty and name.endswith("box"))
    sum(ours.values()).backward()


def test_detections_equal_the_stock_models(case, detector):
    detector.eval()
    images = make_images(SIZES)
    for ours, stock in zip(detector.detect(images), case.stock_detections(detector, images), strict=True):
        assert len(ours.boxes) == len(stock.boxes) > 3
        # pairwise, so that two scores that agree in seven digits may change places
        same = (ours.boxes[:, None] - stock.boxes).abs().amax(-1) < 0.01  # [D, D], pixels
        same &= (ours.scores[:, None] - stock.scores).abs() < 1e-4
        same &= ours.classes[:, None] == stock.classes
        assert same.any(0).all()
        assert same.any(1).all()
        assert (ours.scores.diff() <= 0).all()
        assert not ours.boxes.requires_grad


@two_stage
def test_detections_from_a_pass_that_is_there_are_the_same(case, detector):
    detector.eval()
    images = make_images(((128, 128), (100, 120))).pad_to_multiple(detector.size_divisibility)
    with torch.no_grad():
        features = detector.encode(images)
        proposals = detector.propose(features, detector.dense(features), 10_000)
    for one, other in zip(detector.detect(images), detector.detect_from(features, proposals), strict=True):
        assert len(one.boxes) > 3
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-5)
        assert torch.equal(one.classes, other.classes)
        assert not other.boxes.requires_grad


@two_stage
@pytest.mark.parametrize("empty", [False, True])
def test_the_losses_of_proposals_alone_are_the_stock_models(case, detector, empty):
    batch = make_labeled(((128, 128), (100, 120)), empty=empty)
    detector.train()
    features = detector.encode(batch.images.pad_to_multiple(detector.size_divisibility))
    torch.manual_seed(3)
    whole = copy.deepcopy(detector).supervised_losses(batch)
    torch.manual_seed(3)
    alone, proposals = detector.proposal_losses(features, batch.targets)
    assert set(alone) == {"dense_cls", "dense_box"}
    for name, loss in alone.items():
        torch.testing.assert_close(loss, whole[name])
    for boxes, expected in zip(proposals, detector.propose(features, detector.dense(features), 20), strict=True):
        assert len(expected) > 10
        torch.testing.assert_close(boxes[:20], expected)
        assert not boxes.requires_grad
    sum(alone.values()).backward()


def test_exported_weights_load_in_the_stock_model(case, tmp_path):
    """`model_final.pth` loads without this project."""
    detector, stock = case.exported(tmp_path)
    state = stock.state_dict()
    more = state.keys() - detector.plain_state_dict().keys()
    assert all(name.endswith("num_batches_tracked") for name in more)  # frozen BN has no such counter
    for name, value in detector.plain_state_dict().items():
        assert torch.equal(state[name], value), name


def test_a_teacher_is_a_detector_of_its_own(case, detector):
    """The copy has the student's predictions, is in eval mode and shares no weight with it."""
    teacher = Teacher(detector)
    images = make_images(SIZES).pad_to_multiple(detector.size_divisibility)
    detector.eval()
    expected = {name: value.detach() for name, value in predict_all(detector, images).items()}
    with torch.no_grad():
        for weight in detector.parameters():
            weight.mul_(3.0)
    copied, moved = predict_all(teacher.module, images), predict_all(detector, images)
    for name, value in expected.items():
        torch.testing.assert_close(copied[name], value)
        assert not copied[name].requires_grad
        assert not torch.allclose(moved[name], value), name
    assert len(teacher.module.detect(images)[0].boxes) > 0


METHODS = {
    "sed": ("sed", SEDOptions(regions_per_view=8)),
    "sed_anchored": ("sed", SEDOptions(regions_per_view=8, scale_target="teacher")),
    "sed_plus": ("sed_plus", SEDPlusOptions(threshold=0.0)),
    "pseudo_label": ("pseudo_label", PseudoLabelOptions(threshold=0.0, box_loss=True)),
}
BOTH = ("scale", "distill")
TERMS = {"sed": BOTH, "sed_anchored": BOTH, "sed_plus": ("pseudo", "pseudo_half"), "pseudo_label": ("pseudo",)}


@pytest.mark.parametrize("name", METHODS)
def test_one_step_of_a_method(case, detector, name):
    """Every loss is there, finite and positive; every weight gets a gradient; the teacher is updated."""
    kind, options = METHODS[name]
    method = build_method(kind, detector, SCHEDULE, options).train()
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1e-4)
    torch.manual_seed(11)
    losses = method(make_labeled(), make_unlabeled(), 5)
    parts = [f"{head}_{kind}" for head in sorted(detector.heads) for kind in ("box", "cls")]
    assert sorted(losses) == sorted(f"{term}/{part}" for term in ("sup", *TERMS[name]) for part in parts)
    for key, loss in losses.items():
        assert torch.isfinite(loss), key
        assert loss > 0 or key.startswith("pseudo"), key  # a pseudo-label of no size matches no anchor
    sum(losses.values()).backward()
    for key, weight in detector.named_parameters():
        expected = weight.requires_grad and not matches(key, case.untrained)
        assert (weight.grad is not None and weight.grad.isfinite().all()) == expected, key
    assert all(weight.grad is None for weight in method.teacher.parameters())
    before = method.teacher.checksum()
    optimizer.step()
    method.update_teacher(5)
    assert method.teacher.checksum() != before


def test_the_unsupervised_terms_alone_reach_every_weight(case, detector):
    """Gradient flows through the student's passes on X_s and on X^, not only through the labelled images.

    Which weights only labelled images train, the case says; no more and no fewer.
    """
    method = build_method("sed", detector, SCHEDULE, METHODS["sed"][1]).train()
    losses = method(make_labeled(), make_unlabeled(), 5)
    trainable = {key for key, weight in detector.named_parameters() if weight.requires_grad}
    never = {key for key in trainable if matches(key, case.untrained)}
    labeled = {key for key in trainable - never if matches(key, case.only_labeled)}
    mute = {key for key in trainable if matches(key, case.mute)}
    for pattern in (*case.untrained, *case.only_labeled, *case.mute):
        assert any(fnmatch(key, pattern) for key in trainable), pattern
    for term, expected in (("sup", never), ("scale", never | labeled), ("distill", never | labeled)):
        detector.zero_grad()
        sum(loss for key, loss in losses.items() if key.startswith(term)).backward(retain_graph=True)
        grads = {key: weight.grad for key, weight in detector.named_parameters() if weight.requires_grad}
        idle = {key for key, grad in grads.items() if grad is None or not grad.any()} - mute
        if term == "sup":  # what it reaches besides depends on which anchors and boxes are sampled
            idle &= expected
        if term == "scale":  # Eq. 2 is blind to a last bias, which shifts both views alike
            idle = {key for key in idle if key in expected or not key.endswith("bias")}
        assert idle == expected - mute, term


def test_autocast_trains_in_bf16(case, detector):
    method = build_method("sed", detector, SCHEDULE, METHODS["sed"][1]).train()
    # 64 pixels would do but for PyTorch: on CPU, a 3 x 3 convolution of stride 2 on a map of 1 x 1 (P7) leaves parts
    # of its bf16 weight gradient unset
    sizes = ((128, 128), (100, 120))
    images = make_images(sizes).pad_to_multiple(detector.size_divisibility)
    exact, *_ = predict_all(detector.eval(), images).values()
    with torch.autocast("cpu", torch.bfloat16):
        low, *_ = predict_all(detector, images).values()
    torch.manual_seed(4)
    labeled = sum(method.train().supervised(make_labeled(sizes)).values()).item()
    torch.manual_seed(4)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(make_labeled(sizes), make_unlabeled(sizes), 5)
    assert low.dtype == torch.bfloat16
    if "query" in case.heads:  # rounding may change which locations become queries, and which anchors are sampled
        assert sum(loss.item() for key, loss in losses.items() if key.startswith("sup/")) == pytest.approx(labeled, 0.1)
    else:
        assert (low - exact).abs().mean() < 0.1 * exact.abs().mean()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(loss.dtype == torch.float32 for key, loss in losses.items() if not key.startswith("sup/"))
    sum(losses.values()).backward()
    for key, weight in detector.named_parameters():
        expected = weight.requires_grad and not matches(key, case.untrained)
        assert (weight.grad is not None and weight.grad.isfinite().all()) == expected, key
        assert weight.dtype == torch.float32
