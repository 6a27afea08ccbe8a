from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from dmt.datasets import NAMES, load_sets
from dmt.image_sets import ImageFiles
from sed.data.errors import DataError
from tests.reference import dmt_folders as folders

CITYSCAPES_TABLE = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
CITYSCAPES_TABLE += [255, 255, 16, 17, 18]  # label ids 0..33 -> what the benchmark scores, as the authors list it


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return folders.make_voc(tmp_path)


def open_png(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


# ------------------------------------------------------------------------------------------ VOC 2012
def test_voc_is_its_train_and_what_sbd_adds(voc):
    sets = load_sets("voc2012_aug", voc)
    expected = sorted({*folders.VOC_TRAIN, *folders.SBD_TRAIN, *folders.SBD_VAL} - set(folders.VOC_VAL))
    assert sets.task == "segmentation"
    assert list(sets.train.keys) == expected
    assert len(sets.train) == 18
    assert list(sets.test.keys) == list(folders.VOC_VAL)
    assert len(sets.train.classes) == 21
    assert sets.train.classes[:2] == ("background", "aeroplane")
    assert sets.train.classes[-1] == "tvmonitor"
    assert sets.labeled is None
    assert sets.tune is None


def test_voc_reads_every_mask_from_where_it_belongs(voc):
    train = load_sets("voc2012_aug", voc).train
    for index, key in enumerate(train.keys):
        labels = train.target(index)
        if key in folders.VOC_TRAIN:  # also the one that SBD has, too: with VOC's ring
            np.testing.assert_array_equal(labels, open_png(voc / f"VOCdevkit/VOC2012/SegmentationClass/{key}.png"))
            assert (labels == 255).any()
        else:
            content = scipy.io.loadmat(voc / f"benchmark_RELEASE/dataset/cls/{key}.mat")
            np.testing.assert_array_equal(labels, content["GTcls"]["Segmentation"][0, 0])
            assert labels.max() <= 20
        image = train.image(index)
        np.testing.assert_array_equal(image, open_png(voc / f"VOCdevkit/VOC2012/JPEGImages/{key}.jpg"))
        assert image.shape == (*labels.shape, 3)
        assert image.dtype == labels.dtype == np.uint8
        image[:] = 0  # the caller's own
        assert train.image(index).any()
    assert {train.image(i).shape for i in range(len(train))} == {(60, 80, 3), (80, 60, 3)}


def test_voc_1464_says_which_images_are_labelled(voc):
    sets = load_sets("voc2012_1464", voc)
    assert sorted(sets.train.keys[i] for i in sets.labeled) == sorted(folders.VOC_TRAIN)
    assert len(sets.train) == 18


def test_voc_counts_what_it_leaves_out(voc, caplog):
    with caplog.at_level(logging.INFO, logger="sed.dmt"):
        load_sets("voc2012_aug", voc)
    assert "18 training images, 6 of VOC and 12 of SBD; 2 of SBD left out" in caplog.text
    assert "has 10582 images, this one 18" in caplog.text


# ------------------------------------------------------------------------------------------ Cityscapes
def test_cityscapes_labels_are_those_of_the_benchmark(tmp_path):
    sets = load_sets("cityscapes", folders.make_cityscapes(tmp_path))
    assert sets.train.keys == (
        "aachen_000000_000019",
        "aachen_000001_000019",
        "aachen_000002_000019",
        "zurich_000000_000019",
        "zurich_000001_000019",
    )
    assert [key.split("_")[0] for key in sets.test.keys] == ["frankfurt", "frankfurt", "munster"]
    assert len(sets.train.classes) == 19
    assert sets.train.classes[0] == "road"
    assert sets.train.classes[-1] == "bicycle"
    seen = set()
    for part, images in (("train", sets.train), ("val", sets.test)):
        for index, key in enumerate(images.keys):
            city = key.split("_")[0]
            ids = open_png(tmp_path / f"cityscapes/gtFine/{part}/{city}/{key}_gtFine_labelIds.png")
            np.testing.assert_array_equal(images.target(index), np.array(CITYSCAPES_TABLE, np.uint8)[ids])
            pixels = open_png(tmp_path / f"cityscapes/leftImg8bit/{part}/{city}/{key}_leftImg8bit.png")
            np.testing.assert_array_equal(images.image(index), pixels)
            seen |= set(np.unique(ids))
    assert len(seen) > 12


def test_every_cityscapes_id_by_hand(tmp_path):
    folders.make_cityscapes(tmp_path)
    train = load_sets("cityscapes", tmp_path).train
    Image.fromarray(np.resize(np.arange(34, dtype=np.uint8), (64, 128))).save(train.masks[0])
    assert train.target(0).flatten()[:34].tolist() == CITYSCAPES_TABLE


# ------------------------------------------------------------------------------------------ classification
def test_cifar10(tmp_path, monkeypatch):
    root = folders.make_cifar10(tmp_path, monkeypatch)
    sets = load_sets("cifar10", root)
    assert sets.task == "classification"
    assert (len(sets.train), len(sets.test)) == (300, 40)
    assert sets.train.classes[3] == "cat"
    assert len(set(sets.train.keys)) == 300
    with open(root / "cifar-10-batches-py/data_batch_2", "rb") as stream:
        batch = pickle.load(stream)
    planes = batch["data"][7].reshape(3, 32, 32)  # red, green, blue
    np.testing.assert_array_equal(sets.train.image(67), planes.transpose(1, 2, 0))
    assert sets.train.target(67) == batch["labels"][7]
    assert isinstance(sets.train.target(67), int)


def test_cifar10_of_another_md5_is_named(tmp_path, monkeypatch):
    root = folders.make_cifar10(tmp_path, monkeypatch)
    with open(root / "cifar-10-batches-py/data_batch_4", "ab") as stream:
        stream.write(b"x")
    (root / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py: data_batch_4, test_batch missing or not as published"):
        load_sets("cifar10", root)


def test_cifar10_made_here_is_not_taken_for_the_published_one(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        folders.make_cifar10(tmp_path, patch)
    assert CIFAR10.train_list[0][1] == "c99cafc152244af753f735de768cd75f"
    with pytest.raises(DataError, match=r"batches.meta missing or not as published"):
        load_sets("cifar10", tmp_path)


def test_digits_are_divided_once_and_for_all():
    sets = load_sets("digits", "nowhere")
    assert [len(part) for part in (sets.train, sets.tune, sets.test)] == [997, 200, 600]
    assert len({*sets.train.keys, *sets.tune.keys, *sets.test.keys}) == 1797
    for part, each in ((sets.train, 97), (sets.tune, 19), (sets.test, 58)):
        assert np.bincount(part.targets).min() >= each
    assert sets.test.keys[:5] == ("digit_0001", "digit_0004", "digit_0010", "digit_0021", "digit_0024")
    data = load_digits()
    for part in (sets.train, sets.tune, sets.test):
        for index in range(0, len(part), 50):
            number = int(part.keys[index].removeprefix("digit_"))
            image = part.image(index)
            assert image.shape == (8, 8, 3)
            np.testing.assert_array_equal(image[..., 1], np.rint(data.images[number] * 255 / 16))
            assert part.target(index) == data.target[number]


# ------------------------------------------------------------------------------------------ all of them
def test_sets_travel_to_workers(voc, tmp_path):
    folders.make_cityscapes(tmp_path)
    for name in ("voc2012_aug", "cityscapes", "digits"):
        train = load_sets(name, tmp_path).train
        copy = pickle.loads(pickle.dumps(train))
        np.testing.assert_array_equal(copy.target(2), train.target(2))
        np.testing.assert_array_equal(copy.image(2), train.image(2))


def test_unknown_set():
    with pytest.raises(DataError, match="'voc' is unknown; there are voc2012_aug"):
        load_sets("voc", "nowhere")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("voc2012_aug", "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt: not there; .*VOCtrainval_11-May-2012.tar"),
        ("cityscapes", "cityscapes/leftImg8bit/train: not there; .*leftImg8bit_trainvaltest.zip"),
        ("cifar10", "cifar-10-batches-py: not there; .*cifar-10-python.tar.gz"),
    ],
)
def test_nothing_there(tmp_path, name, what):
    with pytest.raises(DataError, match=what):
        load_sets(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "gone", "what"),
    [
        ("voc2012_aug", "benchmark_RELEASE/dataset/val.txt", "val.txt: not there; it comes from benchmark.tgz"),
        ("voc2012_1464", "VOCdevkit/VOC2012/JPEGImages/2007_000042.jpg", "voc2012 val: 1 of 3 image .*2007_000042.jpg"),
        ("voc2012_aug", "benchmark_RELEASE/dataset/cls/2008_000002.mat", "train: 1 of 18 mask .*2008_000002.mat"),
        ("cityscapes", "cityscapes/gtFine/val", "gtFine/val: not there"),
        (
            "cityscapes",
            "cityscapes/gtFine/train/zurich/zurich_000000_000019_gtFine_labelIds.png",
            "cityscapes train: 1 of 5 mask files are missing, the first is .*zurich_000000",
        ),
    ],
)
def test_something_missing(tmp_path, name, gone, what):
    folders.make_voc(tmp_path)
    folders.make_cityscapes(tmp_path)
    path = tmp_path / gone
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=what):
        load_sets(name, tmp_path)


def test_an_empty_cityscapes_folder(tmp_path):
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / "cityscapes" / kind / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="leftImg8bit/train: no images"):
        load_sets("cityscapes", tmp_path)


def break_file(path: Path, how: str) -> None:
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "text":
        path.write_text("not an image")
    elif how == "rgb":
        Image.open(path).convert("RGB").save(path)
    elif how == "size":
        Image.fromarray(np.zeros((7, 9), np.uint8)).save(path)
    elif how == "label":
        Image.fromarray(np.full(np.array(Image.open(path)).shape, 21, np.uint8)).save(path)
    elif how == "other mat":
        scipy.io.savemat(path, {"GTinst": 1.0})


@pytest.mark.parametrize(
    ("key", "how", "what"),
    [
        ("2007_000032", "cut", "SegmentationClass/2007_000032.png: cannot be read as a part of voc2012 train"),
        ("2007_000032", "rgb", r"2007_000032.png: .* one label a pixel, 80 x 60 uint8 .* found 80 x 60 x 3 uint8"),
        ("2007_000032", "size", r"2007_000032.png: .* one label a pixel, 80 x 60 uint8 .* found 7 x 9 uint8"),
        ("2007_000032", "label", "2007_000032.png: label 21 is none of the 21 classes of voc2012 train nor 255"),
        ("2008_000002", "cut", "cls/2008_000002.mat: cannot be read as a part of voc2012 train"),
        ("2008_000002", "text", "cls/2008_000002.mat: cannot be read as a part of voc2012 train"),
        ("2008_000002", "other mat", "cls/2008_000002.mat: cannot be read as a part of voc2012 train .*GTcls"),
    ],
)
def test_a_mask_that_cannot_be_used(voc, key, how, what):
    train = load_sets("voc2012_aug", voc).train
    index = train.keys.index(key)
    break_file(Path(train.masks[index]), how)
    assert load_sets("voc2012_aug", voc).train.keys == train.keys  # files are opened when they are asked for
    train.image(index)
    with pytest.raises(DataError, match=what):
        train.target(index)


@pytest.mark.parametrize("how", ["cut", "text"])
def test_an_image_that_cannot_be_read(voc, how):
    test = load_sets("voc2012_aug", voc).test
    break_file(Path(test.images[1]), how)
    with pytest.raises(DataError, match=r"2007_000042.jpg: cannot be read as a part of voc2012 val"):
        test.image(1)
    test.image(0)


def test_grey_images_become_rgb(tmp_path):
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(tmp_path / "grey.png")
    images = ImageFiles("x", ("a",), ("grey",), (str(tmp_path / "grey.png"),), ("",), open_png)
    np.testing.assert_array_equal(images.image(0), np.full((4, 5, 3), 7))


def test_every_name_is_read():
    assert set(NAMES) == {"voc2012_aug", "voc2012_1464", "cityscapes", "cifar10", "digits", "textured_digits"}
