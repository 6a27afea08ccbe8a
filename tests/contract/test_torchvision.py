"""What only torchvision's adapter has: built from a `DetectorSpec`, or wrapped around a ready-built model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_resnet50_fpn,
    keypointrcnn_resnet50_fpn,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from sed.detectors import DetectorSpec, build_detector, wrap
from sed.methods import SED, Schedule, SEDOptions
from tests.reference.detectors import make_detector, make_images, make_labeled, make_unlabeled


def test_frozen_stages_and_frozen_bn():
    """The paper: stem and first stage frozen, every BN in eval mode (docs/method.md 9)."""
    detector = make_detector("resnet_rcnn").train()
    before = {k: v.clone() for k, v in detector.state_dict().items() if "running" in k}
    sum(detector.supervised_losses(make_labeled()).values()).backward()
    body = detector.model.backbone.body
    assert all(p.grad is None for m in (body.conv1, body.bn1, body.layer1) for p in m.parameters())
    assert all(p.grad is not None for p in body.layer2.parameters())
    assert before
    assert all(torch.equal(v, detector.state_dict()[k]) for k, v in before.items())
    bn = [m for m in body.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not bn


@pytest.mark.parametrize(("norm", "kind"), [("BN", torch.nn.BatchNorm2d), ("GN", torch.nn.GroupNorm)])
def test_training_from_scratch_has_its_own_norm(norm, kind):
    detector = build_detector(DetectorSpec(num_classes=2, depth=18, norm=norm, freeze_at=0, fpn_channels=16))
    assert any(isinstance(m, kind) for m in detector.modules())
    assert all(p.requires_grad for p in detector.parameters())


def test_wrap_takes_a_ready_built_model_and_names_what_it_cannot():
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    detector = wrap(model)
    assert (detector.num_classes, detector.size_divisibility) == (3, 64)
    with pytest.raises(TypeError, match="mask and keypoint heads"):
        wrap(keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None))
    with pytest.raises(TypeError, match="cannot wrap SSD"):
        wrap(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None))


def test_anchor_sizes_must_fit_the_pyramid():
    with pytest.raises(ValueError, match=r"3 lists; this backbone has 5 levels"):
        build_detector(DetectorSpec(num_classes=2, anchor_sizes=((8,), (16,), (32,))))


def test_the_channel_that_stands_for_no_class_is_never_detected():
    """torchvision's RetinaNet has a logit for label 0; only the focal loss keeps it low."""
    detector = make_detector("resnet_retinanet").eval()
    with torch.no_grad():
        detector.model.head.classification_head.cls_logits.bias.view(-1, detector.num_classes + 1)[:, 0] = 5.0
    detector.model.score_thresh = 0.0
    (found,) = detector.detect(make_images(((64, 64),)))
    assert (found.classes >= 0).all()


def one_map_model(sizes):
    """What a user might have: Faster R-CNN on the last map of a small network, stride 16."""
    layers = [layer for i in range(4) for layer in (nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1), nn.ReLU())]
    backbone = nn.Sequential(*layers)
    backbone.out_channels = 8
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator((sizes,), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 1),
        box_head=TwoMLPHead(8 * 4**2, 16),
        box_predictor=FastRCNNPredictor(16, 4),
        rpn_post_nms_top_n_train=20,
        rpn_post_nms_top_n_test=20,
    )


def test_a_single_map_trains_on_the_anchors_that_have_a_partner():
    detector = wrap(one_map_model((16, 32, 64)))
    ratios = (0.5**0.5, 1.0, 2**0.5)
    assert detector.size_divisibility == 16
    images = make_images(size_divisibility=32)
    (level,) = detector.dense(detector.encode(images)).levels
    sides = [(size / root, size * root) for root in ratios for size in (16, 32, 64)]  # torchvision's order
    assert np.asarray(level.anchors) == pytest.approx(np.asarray(sides))
    method = SED(detector, Schedule(burn_in=1, max_iter=4, first_drop=3), SEDOptions(regions_per_view=8)).train()
    losses = method(make_labeled(), make_unlabeled(), 2)
    assert losses["scale/dense_cls"] > 0
    assert losses["scale/dense_box"] > 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_the_error_for_a_single_map_without_pairs_of_sizes_names_the_key_to_set():
    detector = wrap(one_map_model((16, 24)))
    method = SED(detector, Schedule(burn_in=1, max_iter=4, first_drop=3), SEDOptions(regions_per_view=8)).train()
    with pytest.raises(ValueError, match=r"sizes \[16.0, 24.0\]\); set MODEL.ANCHOR_GENERATOR.SIZES to .* factor 2"):
        method(make_labeled(), make_unlabeled(), 2)
