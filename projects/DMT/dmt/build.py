"""From a config to what a run works with: the parts of the data, augmentation, models, inference."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import nn

from dmt.augmentation import SegmentationTest, SegmentationTrain
from dmt.classification_augmentation import ClassificationTest, ClassificationTrain
from dmt.datasets import load_sets
from dmt.image_sets import ImageSet
from dmt.inference import Inference
from dmt.models import SEGMENTERS, build_model
from dmt.splits import SEED, difference_maximised, hold_out, nested_split, per_class_split
from dmt.weights import load_init
from sed.config import ConfigError
from sed.data.files import save_text
from sed.engine.solver import Precision


@dataclass(frozen=True)
class Part:
    """Some images of a set."""

    images: ImageSet
    indices: Sequence[int]


@dataclass(frozen=True)
class Data:
    """The images of a run; its parts share none.

    Attributes:
        segmentation: pixels are classified; else whole images.
        train: the set that is divided.
        labeled: indices of it whose labels are learned.
        unlabeled: indices of it whose labels are not looked at.
        first: labelled indices of the baselines of A and B; other than `labeled` with SPLIT.DIFFERENCE_MAXIMISED.
        select: images that choose a training's best step; None: nobody does.
        test: images that are reported on.
    """

    segmentation: bool
    train: ImageSet
    labeled: Sequence[int]
    unlabeled: Sequence[int]
    first: tuple[Sequence[int], Sequence[int]]
    select: Part | None
    test: Part

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return self.train.classes

    def labeled_of(self, model: str) -> Sequence[int]:
        """The labelled images of a baseline."""
        return self.first["AB".index(model)]


def build_data(cfg: CfgNode) -> Data:
    """Read and divide the sets.

    Raises:
        DataError: for files that are missing or cannot be used.
        ConfigError: for a split that the set does not have.
    """
    split, sets = cfg.SPLIT, load_sets(cfg.DATASETS.NAME, cfg.DATASETS.ROOT)
    segmentation = sets.task == "segmentation"
    if segmentation != (cfg.MODEL.NAME in SEGMENTERS):
        raise ConfigError(f"MODEL.NAME {cfg.MODEL.NAME} does not fit {cfg.DATASETS.NAME}, a set for {sets.task}")
    if (split.PER_CLASS != 0) == segmentation:
        raise ConfigError(
            "SPLIT.PER_CLASS (images of each class) divides a set for classification, SPLIT.RATIO one for "
            f"segmentation; {cfg.DATASETS.NAME} is for {sets.task} and SPLIT.PER_CLASS is {split.PER_CLASS}"
        )
    m = cfg.METHOD
    if segmentation and m.MIXUP:
        raise ConfigError("METHOD.MIXUP mixes whole images with one label; set it to 0 for segmentation")
    if not segmentation and m.RENORMALIZE:
        raise ConfigError("METHOD.RENORMALIZE is for segmentation; set it to False")
    train = sets.train
    held: tuple[int, ...] = ()
    if segmentation:
        if sets.labeled is not None:
            labeled = sets.labeled
            rest = sorted(set(range(len(train))) - set(labeled))
            unlabeled = tuple(random.Random(SEED).sample(rest, len(rest)))
        else:
            labeled, unlabeled = nested_split(len(train), split.RATIO, split.FOLD)
        if split.SELECT == "valtiny" and not unlabeled:
            raise ConfigError("SPLIT.SELECT valtiny holds out unlabelled images, SPLIT.RATIO leaves none; take last")
        if split.SELECT == "valtiny":
            held, unlabeled = hold_out(unlabeled, split.SELECT_COUNT)
    else:
        targets = [train.target(index) for index in range(len(train))]
        rest = tuple(range(len(train)))
        if split.SELECT == "valtiny":
            held, rest = hold_out(rest, split.SELECT_COUNT, labels=targets)
        labeled, unlabeled = (
            (rest, ()) if split.PER_CLASS < 0 else per_class_split(targets, split.PER_CLASS, split.FOLD, rest)
        )

    test = Part(sets.test, range(len(sets.test)))
    tune = Part(sets.tune, range(len(sets.tune))) if sets.tune is not None else None
    if split.SELECT == "tune" and tune is None:
        raise ConfigError(f"SPLIT.SELECT tune: {cfg.DATASETS.NAME} has no such part; take valtiny")
    select = {"last": None, "valtiny": Part(train, held), "tune": tune, "test": test}[split.SELECT]
    first = difference_maximised(labeled) if split.DIFFERENCE_MAXIMISED else (labeled, labeled)
    return Data(segmentation, train, labeled, unlabeled, first, select, test)


def write_split(path: Path, data: Data, cfg: CfgNode) -> None:
    """Write down which images are labelled, so that a run can be repeated and compared (atomic)."""
    keys = data.train.keys
    content = {
        "dataset": cfg.DATASETS.NAME,
        **{name.lower(): value for name, value in cfg.SPLIT.items()},
        "labeled": len(data.labeled),
        "unlabeled": len(data.unlabeled),
        "selecting": len(data.select.indices) if data.select else 0,
        "test": len(data.test.indices),
        "labeled_keys": [keys[i] for i in data.labeled],
        "selecting_keys": [data.select.images.keys[i] for i in data.select.indices] if data.select else [],
    }
    save_text(json.dumps(content, indent=1), path)


def augmentation(cfg: CfgNode, data: Data, model: str) -> SegmentationTrain | ClassificationTrain:
    """What a training does to its images; pixels are normalised as the model "A" or "B" expects them."""
    i, normalization = cfg.INPUT, _normalization(cfg, model)
    if not data.segmentation:
        return ClassificationTrain(i.CROP_PADDING, i.FLIP, i.OPERATIONS, normalization)
    sides = (tuple(i.SIDES[:2]), tuple(i.SIDES[2:])) if i.SIDES else None
    resize = tuple(i.RESIZE) or None
    return SegmentationTrain(
        tuple(i.CROP), scale=tuple(i.SCALE), sides=sides, resize=resize, flip=i.FLIP, normalization=normalization
    )


def inference(cfg: CfgNode, data: Data, model: str, device: torch.device) -> Inference:
    """How the model "A" or "B" is asked."""
    normalization = _normalization(cfg, model)
    transform: SegmentationTest | ClassificationTest = ClassificationTest(normalization)
    if data.segmentation:
        resize = tuple(cfg.INPUT.RESIZE) or None
        pad = None if resize else tuple(cfg.INPUT.PAD_TEST) or None
        transform = SegmentationTest(pad=pad, resize=resize, normalization=normalization)
    precision = Precision(cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE, device)
    return Inference(transform, precision, device, cfg.TEST.IMS_PER_BATCH, cfg.NUM_WORKERS)


def model_of(cfg: CfgNode, data: Data, model: str, load: bool = False) -> nn.Module:
    """A fresh model "A" or "B", on the CPU; with `load` it begins with its MODEL.INIT."""
    m = cfg.MODEL
    net = build_model(m.NAME, len(data.classes), depth=m.DEPTH, num_active_rates=m.NUM_ACTIVE_RATES)
    if load:
        init = m.INIT["AB".index(model)]
        load_init(net, m.INIT_FILE if init == "coco" else init)
    return net


def _normalization(cfg: CfgNode, model: str) -> str:
    return cfg.MODEL.NORMALIZATION["AB".index(model)]
