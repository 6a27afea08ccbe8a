"""VOC 2012 with SBD, Cityscapes and CIFAR-10 as their archives unpack, with a handful of small images each.

Every image of segmentation has squares of a few classes, each in a colour of its own, on a ground of noise, so that a
network can learn something. VOC's masks have the ring of 255, SBD's have none.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision.datasets import CIFAR10

VOC_TRAIN = ("2007_000032", "2007_000063", "2008_000008", "2009_000010", "2010_000021", "2011_003276")
VOC_VAL = ("2007_000033", "2007_000042", "2008_000013")
SBD_TRAIN = ("2007_000063", "2008_000002", "2008_000003", "2008_000007", "2008_000028", "2009_000001", "2010_000001")
SBD_VAL = ("2008_000013", "2008_000015", "2008_000019", "2009_000006", "2010_000002", "2011_000006", "2011_000010")
CITIES = {
    "train": {
        "zurich": ("000000_000019", "000001_000019"),
        "aachen": ("000000_000019", "000001_000019", "000002_000019"),
    },
    "val": {"munster": ("000000_000019",), "frankfurt": ("000000_000294", "000001_002512")},
}
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _scene(seed: int, size: tuple[int, int], ids: list[int], ground: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [H, W, 3] and labels [H, W] uint8: four squares of `ids` on `ground`."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(0).integers(0, 256, (256, 3))
    labels = np.full(size, ground, np.uint8)
    for label in rng.choice(ids, 4):
        side = int(rng.integers(min(size) // 4, min(size) // 2))
        y, x = (int(rng.integers(0, length - side)) for length in size)
        labels[y : y + side, x : x + side] = label
    pixels = colours[labels] + rng.normal(0, 12, (*size, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), labels


def _ring(labels: np.ndarray) -> np.ndarray:
    """255 where a neighbour has another label."""
    out = labels.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            out[np.roll(labels, step, axis) != labels] = 255
    return out


def _palette() -> list[int]:
    """VOC's colours: the bits of the label, dealt to the highest bits of red, green and blue."""
    colours = []
    for label in range(256):
        colours += [sum(((label >> (3 * i + c)) & 1) << (7 - i) for i in range(3)) for c in range(3)]
    return colours


def make_voc(root: Path, size: tuple[int, int] = (60, 80)) -> Path:
    """`root`/VOCdevkit/VOC2012 and `root`/benchmark_RELEASE/dataset; two SBD images are VOC's own train and val.

    6 images of VOC and 12 that SBD adds make 18 for training; 3 are val.
    """
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    folders = ("JPEGImages", "SegmentationClass", "SegmentationObject", "Annotations", "ImageSets/Segmentation")
    for folder in (*(voc / name for name in folders), sbd / "img", sbd / "cls", sbd / "inst"):
        folder.mkdir(parents=True, exist_ok=True)
    names = sorted({*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL})
    for number, name in enumerate(names):
        shape = size if number % 2 else size[::-1]
        pixels, labels = _scene(number, shape, list(range(1, 21)), ground=0)
        Image.fromarray(pixels).save(voc / "JPEGImages" / f"{name}.jpg", quality=95)
        if name in VOC_TRAIN + VOC_VAL:
            mask = Image.fromarray(_ring(labels))
            mask.putpalette(_palette())  # makes a grey image one of mode P
            mask.save(voc / "SegmentationClass" / f"{name}.png")
        if name in SBD_TRAIN + SBD_VAL:
            Image.fromarray(pixels).save(sbd / "img" / f"{name}.jpg", quality=95)
            content = {"GTcls": {"Boundaries": np.empty((20, 1), object), "Segmentation": labels}}
            content["GTcls"]["CategoriesPresent"] = np.unique(labels[labels > 0])[:, None]
            content["GTcls"]["Boundaries"][:] = 0.0
            scipy.io.savemat(sbd / "cls" / f"{name}.mat", content, do_compression=True)
    lists = {voc / "ImageSets/Segmentation": (VOC_TRAIN, VOC_VAL), sbd: (SBD_TRAIN, SBD_VAL)}
    for folder, parts in lists.items():
        for part, keys in zip(("train", "val"), parts, strict=True):
            (folder / f"{part}.txt").write_text("".join(f"{key}\n" for key in keys))
    return root


def make_cityscapes(root: Path, size: tuple[int, int] = (64, 128)) -> Path:
    """`root`/cityscapes/{leftImg8bit,gtFine}/{train,val}/<city>/: 5 and 3 images with label ids 0..33."""
    number = 0
    for part, cities in CITIES.items():
        for city, frames in cities.items():
            folders = [root / "cityscapes" / kind / part / city for kind in ("leftImg8bit", "gtFine")]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            for frame in frames:
                number += 1
                pixels, labels = _scene(number, size, list(range(34)), ground=7)
                Image.fromarray(pixels).save(folders[0] / f"{city}_{frame}_leftImg8bit.png")
                Image.fromarray(labels).save(folders[1] / f"{city}_{frame}_gtFine_labelIds.png")
                Image.fromarray(labels).save(folders[1] / f"{city}_{frame}_gtFine_instanceIds.png")
                (folders[1] / f"{city}_{frame}_gtFine_polygons.json").write_text("{}")
    return root


def make_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, per_batch: int = 60, test: int = 40) -> Path:
    """`root`/cifar-10-batches-py: five pickled training batches, one of tests, and the names of the classes.

    torchvision compares each file with the published one's md5. Its check stays: for this test it is told the sums of
    the files made here (in this process).
    """
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(0).integers(0, 256, (10, 3, 1))

    def write(name: str, content: dict) -> str:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name: str, count: int, seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(count) % 10)
        pixels = np.clip(colours[labels] + rng.normal(0, 40, (count, 3, 1024)), 0, 255).astype(np.uint8)
        content = {
            "batch_label": name,
            "labels": labels.tolist(),
            "data": pixels.reshape(count, 3072),
            "filenames": [f"{CIFAR_CLASSES[label]}_s_{i:06d}.png" for i, label in enumerate(labels)],
        }
        return [name, write(name, content)]

    train_list = [batch(f"data_batch_{i}", per_batch, i) for i in range(1, 6)]
    test_list = [batch("test_batch", test, 6)]
    meta = {"label_names": CIFAR_CLASSES, "num_cases_per_batch": per_batch, "num_vis": 3072}
    monkeypatch.setattr(CIFAR10, "train_list", train_list)
    monkeypatch.setattr(CIFAR10, "test_list", test_list)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": write("batches.meta", meta)})
    return root
