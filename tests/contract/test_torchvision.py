"""What only torchvision's adapter has: built from a `DetectorSpec`, or wrapped around a ready-built model."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    keypointrcnn_resnet50_fpn,
    ssdlite320_mobilenet_v3_large,
)

from sed.detectors import DetectorSpec, build_detector, wrap
from tests.reference.detectors import make_detector, make_images, make_labeled


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
