"""What a network begins with: the names of four kinds of files, classifiers that fit or not, clear errors."""

from __future__ import annotations

import logging
from urllib.error import URLError

import pytest
import torch
from torchvision.models import ResNet50_Weights, WeightsEnum, resnet50

from dmt.models import build_model
from dmt.weights import COCO_URL, load_init
from sed.detectors.weights import WeightsError
from tests.reference.dmt_models import coco_names


def fresh(classes=21, seed=1, depth=50):
    torch.manual_seed(seed)
    return build_model("deeplab_v2", classes, depth=depth)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """(file, the model that it was made from)."""
    source, path = fresh(seed=5), tmp_path_factory.mktemp("weights") / "coco.pth"
    torch.save(coco_names(source), path)
    return path, source


def equal(first, second, names):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in names)


def parts(model):
    names = [n for n in model.state_dict() if not n.endswith("num_batches_tracked")]
    return [n for n in names if n.startswith("backbone.")], [n for n in names if n.startswith("head.")]


def test_resnet_101_has_the_coco_files_528_tensors():
    """The authors' convert_coco_resnet101.py: 528 fit VOC, 520 fit Cityscapes."""
    with torch.device("meta"):
        voc, city = (coco_names(build_model("deeplab_v2", classes, depth=101)) for classes in (21, 19))
    assert len(voc) == 528
    assert sum(voc[name].shape == city[name].shape for name in voc) == 520
    assert {"conv1.weight", "layer3.22.bn2.running_var", "layer5.conv2d_list.3.bias"} <= set(voc)


def test_coco_file_gives_backbone_and_head(coco, caplog):
    path, source = coco
    model = fresh()
    with caplog.at_level(logging.INFO, "sed.dmt"):
        load_init(model, str(path))
    backbone, head = parts(model)
    assert equal(model, source, backbone + head)
    assert f"DeepLabV2: {len(backbone + head)} tensors from {path}, 0 of its tensors unused; the classifier too" in (
        caplog.text
    )


def test_other_classes_keep_a_fresh_head(coco, caplog):
    path, source = coco
    model, untouched = fresh(classes=19), fresh(classes=19)
    with caplog.at_level(logging.INFO, "sed.dmt"):
        load_init(model, str(path))
    backbone, head = parts(model)
    assert equal(model, source, backbone)
    assert equal(model, untouched, head)
    assert "8 of its tensors unused; the classifier starts fresh" in caplog.text


def test_own_file_and_the_authors_checkpoint_are_taken_whole(coco, tmp_path):
    _, source = coco
    for number, (old, wrap) in enumerate((("head.convs.", None), ("classifier.0.convs.", "model"))):
        state = {name.replace("head.convs.", old): value for name, value in source.state_dict().items()}
        torch.save(state if wrap is None else {wrap: state, "optimizer": None}, tmp_path / "own.pth")
        model = fresh(seed=10 + number)
        load_init(model, str(tmp_path / "own.pth"))
        assert equal(model, source, source.state_dict())


def test_imagenet_is_torchvisions_backbone_without_its_classifier(monkeypatch):
    torch.manual_seed(8)
    stock, asked = resnet50(), []

    def given(self, *args, **kwargs):
        asked.append(self)
        return stock.state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", given)
    model, untouched = fresh(), fresh()
    load_init(model, "imagenet")
    backbone, head = parts(model)
    state = model.state_dict()
    assert all(torch.equal(state[n], stock.state_dict()[n.removeprefix("backbone.")]) for n in backbone)
    assert equal(model, untouched, head)
    assert asked == [ResNet50_Weights.IMAGENET1K_V1]


def test_a_local_imagenet_file_does_the_same(tmp_path):
    torch.manual_seed(8)
    stock = resnet50()
    torch.save(stock.state_dict(), tmp_path / "resnet50.pth")
    model = fresh()
    load_init(model, str(tmp_path / "resnet50.pth"))
    assert torch.equal(model.backbone.layer4[2].conv3.weight, stock.layer4[2].conv3.weight)


@pytest.mark.parametrize("name", ["small_segmenter", "wide_resnet"])
def test_other_networks_take_their_own_files(tmp_path, name):
    torch.manual_seed(9)
    source, same, other = build_model(name, 4), build_model(name, 4), build_model(name, 5)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    kept = other.classifier.weight.clone()
    for model in (same, other):
        load_init(model, str(tmp_path / "own.pth"))
    assert equal(same, source, source.state_dict())
    assert equal(other, source, [n for n in source.state_dict() if not n.startswith("classifier.")])
    assert torch.equal(other.classifier.weight, kept)


def test_nothing_is_nothing():
    model, untouched = fresh(), fresh()
    load_init(model, "")
    assert equal(model, untouched, model.state_dict())


# ---------------------------------------------------------------------------------------------- errors
def test_a_missing_file_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(WeightsError, match=r"absent.pth: no such weights file. MODEL.INIT takes") as error:
        load_init(build_model("small_segmenter", 3), str(tmp_path / "absent.pth"))
    assert COCO_URL in str(error.value)


def test_a_file_of_another_network_is_an_error_and_changes_nothing(coco, tmp_path):
    path, _ = coco
    with pytest.raises(WeightsError, match=r"coco.pth: does not fit this SmallSegmenter: .* tensors are missing"):
        load_init(build_model("small_segmenter", 21), str(path))
    torch.save(build_model("small_segmenter", 21).state_dict(), tmp_path / "small.pth")
    model, untouched = fresh(), fresh()
    with pytest.raises(WeightsError, match=r"small.pth: does not fit this DeepLabV2"):
        load_init(model, str(tmp_path / "small.pth"))
    assert equal(model, untouched, model.state_dict())


def test_a_shape_that_does_not_fit_is_named(coco, tmp_path):
    state = coco_names(coco[1])
    state["layer1.0.conv2.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"backbone.layer1.0.conv2.weight: expected \(64, 64, 3, 3\), found \(3,\)"):
        load_init(fresh(), str(tmp_path / "odd.pth"))


def test_no_weights_file_at_all(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match=r"text.pth: cannot be read; it seems to be no file of torch"):
        load_init(fresh(), str(tmp_path / "text.pth"))


def test_offline_is_one_clear_error(monkeypatch):
    def offline(self, *args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(WeightsError, match=r"set MODEL.INIT to a local file") as error:
        load_init(fresh(), "imagenet")
    assert ResNet50_Weights.IMAGENET1K_V1.url in str(error.value)


def test_imagenet_for_a_network_that_has_none():
    with pytest.raises(WeightsError, match=r"imagenet: there are none for WideResNet; set it to ''"):
        load_init(build_model("wide_resnet", 10), "imagenet")
