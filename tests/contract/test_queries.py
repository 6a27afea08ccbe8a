"""The contract of detectors with the head "query", checked for every member of the DETR family of transformers.

The contract of all heads is in test_detectors.py and test_steps.py; models of unknown classes: test_unknown_models.py.

Shape shorthand: see sed.core.structures.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from sed.core.structures import Images, LabeledBatch, Targets
from sed.core.teacher import Teacher
from sed.core.views import downscale
from sed.detectors import wrap
from sed.detectors.detr import QueryDetector
from tests.reference.cases import query
from tests.reference.detectors import make_images, make_labeled, predict_all
from tests.reference.transformers_case import build_member

pytestmark = query
SIZES = ((64, 64), (50, 60))


def look(detector, images):
    return detector.queries(detector.encode(images))


def padded(detector, sizes=SIZES):
    return make_images(sizes).pad_to_multiple(detector.size_divisibility * 2)


def without_noise(detector):
    """In train mode, but for dropout and the statistics of batch norm."""
    detector.train()
    for module in detector.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        for name in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return detector


# ---------------------------------------------------------------------------------------------- predictions
@pytest.mark.parametrize("training", [False, True])
def test_shapes_and_kind_of_head(case, detector, training):
    found = look(detector.train(training), padded(detector))
    assert found.softmax == case.member.softmax
    assert found.logits.shape == (2, case.queries, 4 if found.softmax else 3)
    assert found.boxes.shape == (2, case.queries, 4)
    assert detector.num_queries == case.queries
    assert detector.reads_mask == (case.member.frame == "image")
    assert found.boxes.isfinite().all()
    assert (found.boxes[..., 2:] >= 0).all()
    if case.member.bounded:
        assert ((found.boxes >= 0) & (found.boxes <= 1)).all()


def test_predictions_depend_on_the_image(case, detector):
    """Predictions depend on the image; otherwise the other tests could not fail."""
    detector.eval()
    one, other = (
        predict_all(detector, make_images(((64, 64),), seed=seed).pad_to_multiple(detector.size_divisibility))
        for seed in (1, 2)
    )
    assert (one["query logits"] - other["query logits"]).abs().mean() > 0.01


def test_the_queries_of_training_are_those_of_inference(case, detector):
    """Group DETR's other groups and the denoising queries are left out."""
    images = padded(detector)
    expected = predict_all(detector.eval(), images)
    for name, value in predict_all(without_noise(detector), images).items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)


def test_the_half_size_view_has_the_same_queries(case, detector):
    images = padded(detector)
    full, half = look(detector, images), look(detector, downscale(images, 1))
    assert full.logits.shape == half.logits.shape
    assert full.boxes.shape == half.boxes.shape


def test_pixels_are_normalised_as_the_processor_does(case, detector):
    processor = getattr(transformers, case.member.processor)()
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    images = padded(detector)
    pixels = detector.encode(images).images.tensor
    assert pixels.shape == images.tensor.shape
    for n, (height, width) in enumerate(images.sizes):
        for c in range(3):
            own = (images.tensor[n, c, :height, :width] * processor.rescale_factor - mean[c]) / std[c]
            torch.testing.assert_close(pixels[n, c, :height, :width], own, atol=1e-4, rtol=1e-4)
        assert not pixels[n, :, height:].any()
        assert not pixels[n, :, :, width:].any()


# ---------------------------------------------------------------------------------------------- frames and padding
def labels_of(detector, batch):
    """The `labels` that the wrapped model is called with."""
    seen = []

    def listen(module, arguments, keywords):
        seen.append(keywords["labels"])

    hook = detector.model.register_forward_pre_hook(listen, with_kwargs=True)
    detector.train().supervised_losses(batch)
    hook.remove()
    return seen[0]


def test_boxes_are_fractions_of_the_frame_on_both_views(case, detector):
    """Of the image where pixel_mask is read, else of the padded tensor; the half-size view has the same fractions."""
    batch = LabeledBatch(padded(detector), make_labeled(SIZES).targets)
    labels = labels_of(detector, batch)
    height, width = batch.images.padded_size
    for label, target, size in zip(labels, batch.targets, SIZES, strict=True):
        h, w = size if case.member.frame == "image" else (height, width)
        # (4, 4, 30, 36) and (20, 10, 44, 40)
        expected = torch.tensor([[17 / w, 20 / h, 26 / w, 32 / h], [32 / w, 25 / h, 24 / w, 30 / h]])
        torch.testing.assert_close(label["boxes"], expected)
        assert torch.equal(label["class_labels"], target.classes)
    halved = tuple(Targets(target.boxes / 2, target.classes) for target in batch.targets)
    for label, own in zip(labels_of(detector, LabeledBatch(downscale(batch.images, 1), halved)), labels, strict=True):
        torch.testing.assert_close(label["boxes"], own["boxes"])


def test_a_model_that_predicts_its_labels_detects_the_targets(case, detector):
    """A model that predicts its labels has its detections at the targets, best first."""
    batch = make_labeled(SIZES)
    labels = labels_of(detector, batch)

    def predict_labels(module, arguments, output):
        output.logits = torch.full_like(output.logits, -9.0)
        for n, label in enumerate(labels):
            output.pred_boxes[n, 1:3] = label["boxes"]
            output.logits[n, 1, label["class_labels"][0]] = 4.0
            output.logits[n, 2, label["class_labels"][1]] = 6.0
        return output

    hook = detector.model.register_forward_hook(predict_labels)
    for found, target in zip(detector.eval().detect(batch.images), batch.targets, strict=True):
        torch.testing.assert_close(found.boxes[:2], target.boxes.flip(0), atol=1e-3, rtol=0)
        assert torch.equal(found.classes[:2], target.classes.flip(0))
        assert (found.scores[:2] > 0.9).all()
        assert (found.scores[2:] < 0.5).all()
    hook.remove()


def test_boxes_are_cut_at_the_image(case, detector):
    def predict_large_boxes(module, arguments, output):
        output.pred_boxes = torch.tensor([0.5, 0.5, 1.5, 1.5]).expand_as(output.pred_boxes)
        return output

    hook = detector.model.register_forward_hook(predict_large_boxes)
    for found, (height, width) in zip(detector.eval().detect(make_images(SIZES)), SIZES, strict=True):
        assert torch.equal(found.boxes, torch.tensor([0.0, 0, width, height]).expand_as(found.boxes))
    hook.remove()


def test_more_padding(case, detector):
    """docs/method.md 10.7, where the mask is read and the backbone is convolutional; for others see `reads_mask`.

    The padding's far border lies off the convolutions' reach in both batches.
    """
    detector.eval()
    side = 2 * detector.size_divisibility
    images = make_images(((side, side), (side - 14, side - 4)))

    def grown(by, masked=True):
        tensor = F.pad(images.tensor, (0, by, 0, by))
        return look(detector, Images(tensor, images.sizes if masked else (tuple(tensor.shape[-2:]),) * 2))

    few, many, blind = grown(2 * side), grown(3 * side), grown(3 * side, masked=False)
    for name in ("logits", "boxes"):
        expected, moved, most = (getattr(view, name) for view in (few, many, blind))
        change = (expected - moved).abs().max()
        if case.member.padding is None:
            assert change > 1e-3
        else:
            assert change < case.member.padding * (expected - most).abs().max() + 1e-5


# ---------------------------------------------------------------------------------------------- losses
def test_parts_add_up_to_the_librarys_own_loss(case, detector):
    """Also for an image without boxes, and for more boxes than queries."""
    two, none = make_labeled(SIZES).targets[0], make_labeled(SIZES, empty=True).targets[0]
    many = Targets(two.boxes.repeat(8, 1), two.classes.repeat(8))
    for targets in ((two, none), (none, many)):
        batch = LabeledBatch(make_images(SIZES), targets)
        expected = case.stock_output(detector, batch, seed=5).loss
        torch.manual_seed(5)
        losses = detector.train().supervised_losses(batch)
        assert sum(losses.values()).item() == pytest.approx(expected.item(), rel=1e-6)


def test_query_cls_has_no_gradient_to_the_box_head(case, detector):
    """`query_cls` has no gradient to the last layer's box head, so that pseudo-labels can train classes alone."""
    losses = detector.train().supervised_losses(make_labeled(SIZES))
    weights = {name: weight for name, weight in detector.named_parameters() if weight.requires_grad}
    moved = {}
    for part in ("query_box", "query_cls"):
        grads = torch.autograd.grad(losses[part], list(weights.values()), retain_graph=True, allow_unused=True)
        moved[part] = {name for name, grad in zip(weights, grads, strict=True) if grad is not None and grad.any()}
    assert any("bbox" in name for name in moved["query_box"] - moved["query_cls"])
    assert any("class" in name for name in moved["query_cls"] - moved["query_box"])


def test_a_batch_after_inference_mode_trains(case, detector):
    """What the library caches in inference mode does not break the training step after it."""
    with torch.inference_mode():
        detector.eval().detect(make_images(SIZES))
    sum(detector.train().supervised_losses(make_labeled(SIZES)).values()).backward()
    look(detector, padded(detector)).boxes.sum().backward()
    grads = [weight.grad for weight in detector.parameters() if weight.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


def test_a_view_with_fewer_places_than_queries_is_one_clear_error(case):
    name = "two_stage_num_proposals" if "two_stage" in case.key else "num_queries"
    detector = case.build(**({"num_detection_tokens": 40} if case.key == "yolos" else {name: 40}))
    side = detector.size_divisibility
    images, target = make_images(((side, side),) * 2), make_labeled().targets[0]
    batch = LabeledBatch(images, (Targets(target.boxes[:1] / 2, target.classes[:1]),) * 2)
    if not case.member.places:
        assert look(detector, images).boxes.shape == (2, 40, 4)
        return
    message = rf"a view of {side} x {side} pixels has fewer places than the model's 40 queries; use larger images"
    with pytest.raises(ValueError, match=message):
        detector.encode(images)
    with pytest.raises(ValueError, match=message):
        detector.train().supervised_losses(batch)


# ---------------------------------------------------------------------------------------------- the wrapped model
def test_a_ready_built_model_is_wrapped_in_one_line_and_left_as_it_was(case):
    model = build_member(case.key).train()
    next(module for module in model.modules() if not list(module.children())).eval()
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    detector = wrap(model)
    assert isinstance(detector, QueryDetector)
    assert detector.model is model
    assert (detector.num_classes, detector.num_queries) == (3, case.queries)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert detector.state_dict().keys() == {f"model.{name}" for name in before}


def test_a_frozen_model_is_wrapped_too(case):
    detector = wrap(build_member(case.key).requires_grad_(False))
    assert len(detector.eval().detect(make_images(SIZES))) == 2


def test_fewer_queries_than_groups(case):
    """Group DETR then has no loss in eval mode; it still has one in train mode."""
    name = "two_stage_num_proposals" if "two_stage" in case.key else "num_queries"
    detector = case.build(**({"num_detection_tokens": 2} if case.key == "yolos" else {name: 2}))
    assert detector.num_queries == 2
    assert all(loss.isfinite() for loss in detector.train().supervised_losses(make_labeled(SIZES)).values())


def test_the_teacher_averages_weights_and_statistics(case, detector):
    """Eq. 4 over all float parameters and buffers; a weight shared by two layers is averaged once."""
    teacher, rate = Teacher(detector), 0.75
    old = copy.deepcopy(teacher.module.state_dict())
    with torch.no_grad():
        for tensor in (*detector.parameters(), *detector.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor).abs())
    teacher.update(detector, rate)
    assert old.keys() == detector.state_dict().keys()
    for name, value in detector.state_dict().items():
        expected = rate * old[name] + (1 - rate) * value if value.is_floating_point() else value
        torch.testing.assert_close(teacher.module.state_dict()[name], expected)
