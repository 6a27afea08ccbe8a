from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import dmt.textured_digits as module
from dmt.datasets import load_sets
from dmt.image_sets import Sets
from dmt.textured_digits import COUNTS, make_textured_digits
from sed.data.errors import DataError

FEW = {"train": 4, "tune": 2, "test": 3}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Sets:
    return load_sets("textured_digits", tmp_path_factory.mktemp("data"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_parts(sets):
    assert sets.task == "segmentation"
    assert sets.labeled is None
    assert [len(part) for part in (sets.train, sets.tune, sets.test)] == [600, 150, 300]
    assert len({*sets.train.keys, *sets.tune.keys, *sets.test.keys}) == 1050
    assert sets.train.classes == ("background", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert sets.train.keys == tuple(sorted(sets.train.keys))
    assert sets.tune.classes == sets.test.classes == sets.train.classes


def test_images_and_masks(sets):
    for part in (sets.train, sets.tune, sets.test):
        pixels = np.zeros(256, int)
        for index in range(len(part)):
            labels = part.target(index)
            assert labels.shape == (64, 64)
            assert set(np.unique(labels)) <= {*range(11), 255}
            pixels += np.bincount(labels.ravel(), minlength=256)
        shares = pixels / pixels.sum()
        assert 0.7 < shares[0] < 0.85
        assert (shares[1:11] > 0.008).all()
        assert 0.03 < shares[255] < 0.1
        assert part.image(0).shape == (64, 64, 3)
        assert part.image(0).dtype == np.uint8


def test_a_ring_parts_every_digit_from_the_ground_and_from_others(sets):
    for index in range(60):
        labels = sets.train.target(index)
        for axis in (0, 1):
            a, b = labels[:-1, :] if axis == 0 else labels[:, :-1], labels[1:, :] if axis == 0 else labels[:, 1:]
            touching = (a != b) & (a != 255) & (b != 255)
            assert (np.minimum(a, b)[touching] > 0).all()  # two digits may overlap; ground never touches one
        # one pixel wide: every pixel of it has a digit among its eight neighbours
        digits = ((labels > 0) & (labels < 255)).astype(np.uint8)
        near = cv2.dilate(digits, np.ones((3, 3), np.uint8)) > 0
        assert near[labels == 255].mean() > 0.97  # a digit drawn later may cover what a ring went around


def test_digits_stand_out_and_the_ground_does_not_give_them_away(sets):
    brighter, texture = [], []
    for index in range(150):
        image, labels = sets.train.image(index).astype(float).mean(-1), sets.train.target(index)
        digit = (labels > 0) & (labels < 255)
        if digit.any():
            ring = cv2.dilate(digit.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
            brighter.append(image[digit].mean() - image[ring & (labels == 0)].mean())
            texture.append(image[labels == 0].std())
    assert np.mean(brighter) > 40
    assert np.min(brighter) > 10
    assert np.mean(texture) > 10  # grey levels: clutter and waves


def test_parts_share_no_glyph(monkeypatch, tmp_path):
    pools = []
    draw = module._compose
    monkeypatch.setattr(module, "_compose", lambda rng, glyphs, pool: (pools.append(pool), draw(rng, glyphs, pool))[1])
    make_textured_digits(tmp_path, {"train": 1, "tune": 1, "test": 1})
    used = [{i for digit in pool for i in digit} for pool in pools]
    assert sum(map(len, used)) == len(set.union(*used)) == 1797
    assert all(len(digit) > 20 for pool in pools for digit in pool)


def test_the_same_every_time(tmp_path):
    first, second = (make_textured_digits(tmp_path / name, FEW) for name in "ab")
    assert content(first) == content(second)
    assert len(content(first)) == 2 * 9 + 1
    more = make_textured_digits(tmp_path / "c", {**FEW, "train": 6})  # an image does not depend on their number
    assert content(first)["train/masks/train_00003.png"] == content(more)["train/masks/train_00003.png"]


def test_made_once_and_anew_only_for_another_version(tmp_path, monkeypatch):
    folder = make_textured_digits(tmp_path, FEW)
    marker = folder / "train" / "marker"
    marker.touch()
    make_textured_digits(tmp_path, FEW)
    assert marker.exists()
    make_textured_digits(tmp_path, {**FEW, "test": 1})
    assert not marker.exists()
    before = content(folder)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    make_textured_digits(tmp_path, {**FEW, "test": 1})
    assert content(folder).keys() == before.keys()
    assert content(folder) != before
    assert [path.name for path in tmp_path.iterdir()] == ["textured_digits"]


def test_an_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    draw, drawn = module._compose, []

    def stop(*args):
        drawn.append(1)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(module, "_compose", stop)
    with pytest.raises(KeyboardInterrupt):
        make_textured_digits(tmp_path, FEW)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "textured_digits").mkdir()
    (tmp_path / "textured_digits" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="textured_digits: exists and is not a digits set"):
        make_textured_digits(tmp_path, FEW)
    assert (tmp_path / "textured_digits" / "thesis.txt").read_text() == "mine"


def test_a_file_that_was_deleted_is_named(tmp_path, monkeypatch):
    for part, count in FEW.items():
        monkeypatch.setitem(COUNTS, part, count)
    folder = make_textured_digits(tmp_path)
    (folder / "test/masks/test_00001.png").unlink()
    with pytest.raises(DataError, match=r"textured_digits test: 1 of 3 mask files are missing, .*test_00001.png"):
        load_sets("textured_digits", tmp_path)
