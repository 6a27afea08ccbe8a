"""A.2's geometric augmentation around a Detectron2 mapper: the native engine's turns and pixels."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch

from sed.d2.config import load_config
from sed.d2.data import build_train_loader, default_mapper
from sed.d2.mapper import ViewMapper
from sed.data.geometry import GeometricAugmentation
from sed.data.mapper import LABELED, UNLABELED, Mapper
from tests.data.conftest import Coco
from tests.data.test_data_geometry import Watch, record_of


@pytest.fixture
def photo(tmp_path) -> dict:
    """A PNG, which every reader decodes to the same pixels."""
    small = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), cv2.resize(small, (100, 60), interpolation=cv2.INTER_CUBIC))
    return record_of(tmp_path / "photo.png", [[10, 12, 30, 24], [80, 40, 18, 18], [0, 0, 6, 50]])


def config(channels: str, *words: str):
    fixed = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(60,)", "INPUT.RANDOM_FLIP", "none"]
    return load_config(None, [*fixed, "INPUT.FORMAT", channels, *words])


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_both_engines_make_the_same_pixels_and_boxes(photo: dict, channels: str) -> None:
    """Without resizing and flipping, which differ in their rounding and their draws."""
    geometric = GeometricAugmentation(seed=3)
    options = {"geometric": geometric, "seed": 3}
    theirs = ViewMapper(default_mapper(config(channels)), channels, **options)
    native = Mapper((60, 60), 1333, flip=False, **options)
    counts = set()
    for position in range(24):
        (image, targets), (wanted, boxes) = (views.labeled(photo, position) for views in (theirs, native))
        assert torch.equal(image, wanted)
        assert torch.equal(targets.boxes, boxes.boxes)
        assert torch.equal(targets.classes, boxes.classes)
        assert torch.equal(theirs.unlabeled(photo, position)[0], native.unlabeled(photo, position)[0])
        counts.add(len(boxes.boxes))
    assert len(counts) > 1  # some draws drop boxes


def test_the_views_share_the_turn_and_no_other_random_number_moves(photo: dict) -> None:
    words = ["INPUT.MIN_SIZE_TRAIN", "(50, 90)", "INPUT.RANDOM_FLIP", "horizontal"]
    watch, before = Watch(), Watch()
    geometric = GeometricAugmentation(seed=2)
    mapper = default_mapper(config("RGB", *words))
    turned = ViewMapper(mapper, "RGB", strong=watch, geometric=geometric, seed=2)
    plain = ViewMapper(mapper, "RGB", strong=before, seed=2)
    for position in range(12):
        weak, strong = turned.unlabeled(photo, position)
        straight, _ = plain.unlabeled(photo, position)
        assert torch.equal(strong, 255 - weak)
        wanted = geometric.draw(UNLABELED, position).image(straight.permute(1, 2, 0).contiguous().numpy())
        assert np.array_equal(weak.permute(1, 2, 0).numpy(), wanted)
        assert watch.seen[position][1] == before.seen[position][1]


def test_the_engine_reads_the_keys(tmp_path, caplog) -> None:
    sets = [Coco(tmp_path / name, [(40, 60)] * 4, seed).write() for seed, name in enumerate(("train", "rest"))]
    words = ["DATASETS.TRAIN", str(sets[0]), "DATASETS.UNLABELED", str(sets[1]), "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    words += ["SEMI.IMS_PER_BATCH_LABELED", "2", "SEMI.IMS_PER_BATCH_UNLABELED", "2", "DATALOADER.NUM_WORKERS", "0"]
    words += ["INPUT.MIN_SIZE_TRAIN", "(40,)", "SEMI.BURN_IN", "0", "SEED", "5"]
    batches = {}
    for choice in ("none", "randaugment"):
        with caplog.at_level(logging.INFO, "sed"):
            loader = build_train_loader(config("RGB", *words, "INPUT.GEOMETRIC", choice), 1)
        batches[choice] = next(loader)
        assert ("geometric augmentation" in caplog.text) == (choice == "randaugment")
    geometric = GeometricAugmentation(5.0, seed=5)
    (before, views, _), (after, turned, _) = batches["none"], batches["randaugment"]
    image = before.images.tensor[0].permute(1, 2, 0).contiguous().numpy()
    wanted, targets = geometric.labeled(image, before.targets[0], LABELED, 0)
    assert np.array_equal(after.images.tensor[0].permute(1, 2, 0).numpy(), wanted)
    assert torch.equal(after.targets[0].boxes, targets.boxes)
    for slot in range(2):
        image = views.weak.tensor[slot].permute(1, 2, 0).contiguous().numpy()
        wanted = geometric.unlabeled(image, UNLABELED, slot)
        assert np.array_equal(turned.weak.tensor[slot].permute(1, 2, 0).numpy(), wanted)


def test_an_image_without_boxes(photo: dict) -> None:
    views = ViewMapper(default_mapper(config("RGB")), "RGB", geometric=GeometricAugmentation())
    targets = views.labeled(record_of(Path(photo["file_name"]), []), 3)[1]
    assert (targets.boxes.shape, targets.boxes.dtype) == ((0, 4), torch.float32)
    assert (targets.classes.shape, targets.classes.dtype) == ((0,), torch.int64)
