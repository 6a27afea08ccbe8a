"""Pretrained weights: local files, torchvision's enums, and one clear error where they cannot be loaded."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.models import ResNet18_Weights, WeightsEnum, resnet18
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn

from sed.detectors import DetectorSpec, WeightsError, build_detector, load_pretrained, read_state_dict
from tests.reference.detectors import make_detector


def test_backbone_file_initialises_the_backbone_only(tmp_path):
    torch.manual_seed(5)
    source = resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "r18.pth")
    detector = make_detector("resnet_rcnn")
    head = detector.model.rpn.head.cls_logits.weight.clone()
    load_pretrained(detector, str(tmp_path / "r18.pth"))
    assert torch.equal(detector.model.backbone.body.layer3[0].conv1.weight, source.layer3[0].conv1.weight)
    assert torch.equal(detector.model.rpn.head.cls_logits.weight, head)


@pytest.mark.parametrize("key", [None, "model", "teacher"])
def test_detector_file_round_trip(tmp_path, key):
    source, target = make_detector(seed=1), make_detector(seed=2)
    state = source.plain_state_dict()
    torch.save(state if key is None else {key: state}, tmp_path / "d.pth")
    load_pretrained(target, str(tmp_path / "d.pth"))
    assert all(torch.equal(v, target.plain_state_dict()[k]) for k, v in state.items())


def test_other_classes_start_the_classifier_fresh(tmp_path):
    spec = {"depth": 18, "fpn_channels": 16, "fc_dim": 32}
    source = build_detector(DetectorSpec(num_classes=7, **spec))
    target = build_detector(DetectorSpec(num_classes=2, **spec))
    classifier = target.model.roi_heads.box_predictor.cls_score.weight.clone()
    torch.save(source.plain_state_dict(), tmp_path / "d.pth")
    load_pretrained(target, str(tmp_path / "d.pth"))
    assert torch.equal(target.model.roi_heads.box_head.fc6.weight, source.model.roi_heads.box_head.fc6.weight)
    assert torch.equal(target.model.roi_heads.box_predictor.cls_score.weight, classifier)


def test_coco_weights_map_their_91_rows_to_80_classes(monkeypatch):
    """COCO_V1 has 91 outputs, of which 81 are used: those that the enum has a name for."""
    torch.manual_seed(7)
    stock = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *a, **k: stock.state_dict())
    detector = build_detector(DetectorSpec(num_classes=80))
    load_pretrained(detector, "coco")
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    used = [n for n in names if n not in ("N/A", "__background__")]
    predictor, source = detector.model.roi_heads.box_predictor, stock.roi_heads.box_predictor
    for k, name in enumerate(used):
        row = names.index(name)
        assert torch.equal(predictor.cls_score.weight[k + 1], source.cls_score.weight[row])
        assert torch.equal(predictor.bbox_pred.weight[4 * k + 4 : 4 * k + 8], source.bbox_pred.weight[4 * row :][:4])
    assert torch.equal(predictor.cls_score.bias[0], source.cls_score.bias[0])


def test_offline_is_one_clear_error(monkeypatch):
    def offline(self, *args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(WeightsError, match=r"set MODEL.WEIGHTS to a local file") as error:
        load_pretrained(make_detector("resnet_rcnn"), "imagenet", depth=18)
    assert ResNet18_Weights.IMAGENET1K_V1.url in str(error.value)


def test_a_planted_file_in_torchvision_s_cache_is_refused_unread(tmp_path, monkeypatch):
    """The hash in its name is that of the published file; with the right hash it still runs no code."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    enum = ResNet18_Weights.IMAGENET1K_V1
    file = tmp_path / "checkpoints" / Path(enum.url).name

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "broken_in"),))

    torch.save({"conv1.weight": Evil()}, file)
    with pytest.raises(WeightsError, match=r"is not the file that torchvision published .*move it away"):
        load_pretrained(make_detector("resnet_rcnn"), "imagenet", depth=18)
    monkeypatch.setattr("sed.detectors.weights.file_hash", lambda path: file.stem.rpartition("-")[2])
    with pytest.raises(WeightsError, match=r"MODEL.WEIGHTS imagenet: .* cannot be read"):
        load_pretrained(make_detector("resnet_rcnn"), "imagenet", depth=18)
    assert not (tmp_path / "broken_in").exists()


def test_file_errors_name_the_file_and_the_reason(tmp_path):
    with pytest.raises(WeightsError, match=r"absent.pth: no such weights file"):
        load_pretrained(make_detector(), str(tmp_path / "absent.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match=r"text.pth: cannot be read; it seems to be no file of torch"):
        read_state_dict(tmp_path / "text.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_state_dict(tmp_path / "none.pth")
    torch.save(make_detector("resnet_retinanet").plain_state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other.pth: does not fit this detector: .* first"):
        load_pretrained(make_detector(), str(tmp_path / "other.pth"))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": pytest.approx}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"refused, it would run .*approx"):
        read_state_dict(tmp_path / "evil.pth")
