"""The sets of images by name, read from disk one image at a time; torchvision knows where each archive keeps what.

| name | task | training images | test images |
| --- | --- | --- | --- |
| voc2012_aug | segmentation, 21 classes | 10,582: VOC 2012's train (1,464), what SBD adds (9,118) | VOC's val, 1,449 |
| voc2012_1464 | the same | the same; VOC's 1,464 are the labelled ones | the same |
| cityscapes | segmentation, 19 classes | 2,975 | val, 500 |
| cifar10 | classification, 10 classes | 50,000 | 10,000 |
| digits | classification, 10 classes | 997 of scikit-learn's, 200 more to tune | 600 |
| textured_digits | segmentation, 11 classes | 600, 150 more to tune (`dmt.textured_digits`) | 300 |

Images of a set for segmentation are sorted by name: with that order `dmt.splits` draws the very lists of images that
the authors of DST-CBC and DMT published for VOC and Cityscapes.

Shape shorthand: H and W of an image's file, N images.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, Cityscapes, SBDataset, VOCSegmentation
from torchvision.datasets.utils import check_integrity

from dmt.image_sets import ImageArray, Sets, image_files, read_png, stem
from dmt.loss import IGNORED
from dmt.textured_digits import CLASSES as TEXTURED_CLASSES
from dmt.textured_digits import COUNTS, make_textured_digits
from sed.data.errors import DataError
from sed.data.voc import CLASSES as VOC_CLASSES

log = logging.getLogger("sed.dmt")

NAMES = ("voc2012_aug", "voc2012_1464", "cityscapes", "cifar10", "digits", "textured_digits")
VOC_SOURCE = "VOCtrainval_11-May-2012.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
SBD_SOURCE = "benchmark.tgz of http://home.bharathh.info/pubs/codes/SBD/download.html"
CITYSCAPES_SOURCE = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of https://www.cityscapes-dataset.com"
CIFAR_SOURCE = "cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"
VOC_AUG_COUNT = 10582
_TRAIN_IDS = np.full(256, IGNORED, np.uint8)  # Cityscapes' label id -> class
for _class in Cityscapes.classes:
    if 0 <= _class.train_id < IGNORED:
        _TRAIN_IDS[_class.id] = _class.train_id


def load_sets(name: str, root: str | Path) -> Sets:
    """The parts of a set; digits are made, all others must lie on disk.

    Args:
        name: one of `NAMES`.
        root: folder of the data sets, see projects/DMT/README.md.

    Raises:
        DataError: for an unknown name, and for folders and files that are missing.
    """
    readers = {
        "voc2012_aug": lambda: _voc(Path(root), fixed=False),
        "voc2012_1464": lambda: _voc(Path(root), fixed=True),
        "cityscapes": lambda: _cityscapes(Path(root) / "cityscapes"),
        "cifar10": lambda: _cifar10(Path(root)),
        "digits": _digits,
        "textured_digits": lambda: _textured_digits(Path(root)),
    }
    if name not in readers:
        raise DataError(f"data set {name!r} is unknown; there are {', '.join(NAMES)}")
    return readers[name]()


# ---------------------------------------------------------------------------------------------- PASCAL VOC 2012
def _voc(root: Path, fixed: bool) -> Sets:
    """`root`/VOCdevkit/VOC2012 and `root`/benchmark_RELEASE/dataset, as the two archives unpack."""
    lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    for part in ("train", "val"):
        _need(lists / f"{part}.txt", f"{VOC_SOURCE}, unpacked in {root} (VOCdevkit/VOC2012 may be a link)")
    sbd_root = root / "benchmark_RELEASE" / "dataset"
    for part in ("train", "val"):
        _need(sbd_root / f"{part}.txt", f"{SBD_SOURCE}, unpacked in {root}")

    train, val = (VOCSegmentation(str(root), year="2012", image_set=part) for part in ("train", "val"))
    extra = [SBDataset(str(sbd_root), image_set=part, mode="segmentation") for part in ("train", "val")]
    files = {stem(image): (image, mask) for image, mask in zip(train.images, train.masks, strict=True)}
    labeled_keys, test_keys = set(files), {stem(image) for image in val.images}
    of_sbd = {stem(i): (i, m) for part in extra for i, m in zip(part.images, part.masks, strict=True)}
    added = of_sbd.keys() - labeled_keys - test_keys
    files |= {key: of_sbd[key] for key in added}
    log.info(
        "voc2012: %d training images, %d of VOC and %d of SBD; %d of SBD left out: they are VOC's train or val",
        len(files),
        len(labeled_keys),
        len(added),
        len(of_sbd) - len(added),
    )
    if len(files) != VOC_AUG_COUNT:
        log.warning("voc2012: the published training set has %d images, this one %d", VOC_AUG_COUNT, len(files))
    keys = tuple(sorted(files))
    classes = ("background", *VOC_CLASSES)
    images, masks = zip(*(files[key] for key in keys), strict=True)
    labeled = tuple(i for i, key in enumerate(keys) if key in labeled_keys) if fixed else None
    return Sets(
        "segmentation",
        image_files("voc2012 train", classes, keys, images, masks, _read_voc_mask),
        image_files("voc2012 val", classes, tuple(map(stem, val.images)), val.images, val.masks, _read_voc_mask),
        labeled,
    )


def _read_voc_mask(path: str) -> np.ndarray:
    """VOC's palette PNG (255: border), or SBD's MATLAB file (no border)."""
    if not path.endswith(".mat"):
        return read_png(path)
    from scipy.io import loadmat

    return np.array(loadmat(path)["GTcls"][0]["Segmentation"][0])


# ---------------------------------------------------------------------------------------------- Cityscapes
def _cityscapes(root: Path) -> Sets:
    """`root`/leftImg8bit and `root`/gtFine."""
    classes = tuple(c.name for c in sorted(Cityscapes.classes, key=lambda c: c.train_id) if 0 <= c.train_id < IGNORED)
    parts = []
    for part in ("train", "val"):
        for folder in ("leftImg8bit", "gtFine"):
            _need(root / folder / part, f"{CITYSCAPES_SOURCE}, unpacked in {root}")
        listed = Cityscapes(str(root), split=part, mode="fine", target_type="semantic")
        pairs = sorted((image, mask[0]) for image, mask in zip(listed.images, listed.targets, strict=True))
        if not pairs:
            raise DataError(f"{root / 'leftImg8bit' / part}: no images; it comes from {CITYSCAPES_SOURCE}")
        images, masks = zip(*pairs, strict=True)
        keys = tuple(stem(image).removesuffix("_leftImg8bit") for image in images)
        parts.append(image_files(f"cityscapes {part}", classes, keys, images, masks, _read_cityscapes_mask))
    return Sets("segmentation", *parts)


def _read_cityscapes_mask(path: str) -> np.ndarray:
    """Label ids -> the 19 classes of the benchmark; all others are ignored."""
    return _TRAIN_IDS[read_png(path)]


# ---------------------------------------------------------------------------------------------- classification
def _cifar10(root: Path) -> Sets:
    """`root`/cifar-10-batches-py; torchvision checks each file's sum."""
    folder = root / CIFAR10.base_folder
    _need(folder, f"{CIFAR_SOURCE}, unpacked in {root}")
    files = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    try:
        parts = [CIFAR10(str(root), train=train) for train in (True, False)]
    except RuntimeError:
        wrong = [file for file, md5 in files if not check_integrity(str(folder / file), md5)]
        raise DataError(
            f"{folder}: {', '.join(wrong)} missing or not as published (another md5); unpack {CIFAR_SOURCE} anew"
        ) from None
    names = ("train", "test")
    sets = [
        ImageArray(
            f"cifar10 {name}",
            tuple(part.classes),
            tuple(f"{name}_{index:05d}" for index in range(len(part))),
            np.ascontiguousarray(part.data),
            np.asarray(part.targets),
        )
        for name, part in zip(names, parts, strict=True)
    ]
    return Sets("classification", *sets)


def _digits() -> Sets:
    """scikit-learn's 1797 handwritten digits, 8x8; parts of fixed images with equal shares of the classes."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(pixels[..., None], 3, axis=-1)  # [N, 8, 8, 3]
    rest, test = train_test_split(np.arange(len(pixels)), test_size=600, random_state=0, stratify=data.target)
    train, tune = train_test_split(rest, test_size=200, random_state=0, stratify=data.target[rest])
    sets = {
        name: ImageArray(
            f"digits {name}",
            tuple(map(str, range(10))),
            tuple(f"digit_{index:04d}" for index in sorted(indices)),
            pixels[np.sort(indices)],
            data.target[np.sort(indices)],
        )
        for name, indices in (("train", train), ("tune", tune), ("test", test))
    }
    return Sets("classification", sets["train"], sets["test"], tune=sets["tune"])


# ---------------------------------------------------------------------------------------------- made on the spot
def _textured_digits(root: Path) -> Sets:
    folder = make_textured_digits(root)
    sets = {}
    for part, count in COUNTS.items():
        keys = tuple(f"{part}_{index:05d}" for index in range(count))
        images, masks = (
            tuple(str(folder / part / kind / f"{key}.png") for key in keys) for kind in ("images", "masks")
        )
        sets[part] = image_files(f"textured_digits {part}", TEXTURED_CLASSES, keys, images, masks, read_png)
    return Sets("segmentation", sets["train"], sets["test"], tune=sets["tune"])


def _need(path: Path, source: str) -> None:
    if not path.exists():
        raise DataError(f"{path}: not there; it comes from {source}")
