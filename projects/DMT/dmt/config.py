"""Every configuration key of DMT and DST-CBC, its default and its meaning, with the paper's symbol.

The manner is that of `sed.config`: a file holds only what differs, may name one `_BASE_`, and an unknown key is an
error that names the nearest one. The defaults are DMT's on PASCAL VOC 1/20 (Tab. 1), but for one thing: no
test image chooses a model (SPLIT.SELECT).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from dmt import datasets, models
from dmt.curriculum import RULES
from dmt.loss import KINDS
from dmt.normalization import NORMALIZATIONS
from sed.config import ConfigError, leaves, load_config
from sed.options.option import Row


def get_cfg() -> CfgNode:
    """A fresh, mutable copy of the defaults."""
    c = CfgNode()
    c.OUTPUT_DIR = "./output"
    c.SEED = 0  # weights, data order and augmentation all follow from it
    c.NUM_WORKERS = 4  # processes that read images, for each GPU

    # ---------------------------------------------------------------- images
    c.DATASETS = CfgNode()
    c.DATASETS.NAME = "voc2012_aug"  # | voc2012_1464 | cityscapes | cifar10 | digits | textured_digits
    c.DATASETS.ROOT = "datasets"  # folder of the data sets; README says what lies where
    c.SPLIT = CfgNode()
    c.SPLIT.RATIO = 20.0  # segmentation: one of so many training images is labelled (1: all)
    c.SPLIT.PER_CLASS = 0  # classification: labelled images of each class (-1: all)
    c.SPLIT.FOLD = 0  # which of the nested splits
    c.SPLIT.SELECT = "last"  # who chooses a training's best step: last (nobody) | valtiny | tune | test (as published)
    c.SPLIT.SELECT_COUNT = 20  # valtiny: training images (classification: of each class) held out of both parts
    c.SPLIT.DIFFERENCE_MAXIMISED = False  # A and B begin with 80 % of the labels each, as different as can be (DMS)

    # ---------------------------------------------------------------- models A and B (one alone: A)
    c.MODEL = CfgNode()
    c.MODEL.NAME = "deeplab_v2"  # | wide_resnet (WRN-28-2) | small_segmenter | small_classifier
    c.MODEL.DEPTH = 101  # 50 | 101: the ResNet of deeplab_v2
    c.MODEL.NUM_ACTIVE_RATES = 4  # dilation branches that are summed; 2: what the authors' code does
    c.MODEL.INIT = ["coco", "imagenet"]  # of A and of B: coco (the authors' file, INIT_FILE) | imagenet | "" | a file
    c.MODEL.INIT_FILE = "weights/resnet101COCO-41f33a49.pth"  # what "coco" reads
    c.MODEL.NORMALIZATION = ["caffe", "imagenet"]  # of A's and of B's pixels: caffe | imagenet | cifar | half
    c.MODEL.SYNC_BN = True  # batch norm over all GPUs
    c.MODEL.DEVICE = "auto"  # auto (cuda where there is one) | cuda | cpu

    # ---------------------------------------------------------------- pixels
    c.INPUT = CfgNode()
    c.INPUT.CROP = [321, 321]  # height, width of a training crop; classification: unused
    c.INPUT.SCALE = [0.5, 1.5]  # both sides times s ~ U
    c.INPUT.SIDES = []  # DST-CBC as published: [hmin, hmax, wmin, wmax], height and width drawn apart
    c.INPUT.RESIZE = []  # height, width of every image first, and of a test image: Cityscapes 512, 1024
    c.INPUT.PAD_TEST = [505, 505]  # a test image is padded to this; []: not
    c.INPUT.FLIP = 0.5  # probability of a horizontal flip
    c.INPUT.CROP_PADDING = 4  # classification: pixels around an image before its own size is cropped
    c.INPUT.OPERATIONS = "scaled"  # classification, one operation: scaled (to the side) | authors (pixels) | none

    # ---------------------------------------------------------------- method
    c.METHOD = CfgNode()
    c.METHOD.SHARES = [0.2, 0.4, 0.6, 0.8, 1.0]  # alpha of each round; []: the baseline alone
    c.METHOD.MUTUAL = True  # A and B label for each other | False: A labels for itself (DST, CBST)
    c.METHOD.RETRAIN = False  # a fresh model each round (classification) | False: fine-tune
    c.METHOD.KEEP_BEST = False  # the next round goes on from the best model of all rounds (DST-CBC), not the last
    c.METHOD.CLASS_BALANCED = True  # the top alpha of each class | False: of all pixels (images)
    c.METHOD.RENORMALIZE = False  # labels argmax p / k_c (CBST; two passes) | False: argmax p
    c.METHOD.RULE = "exact"  # the top int(alpha n) | authors: theirs, one or two off
    c.METHOD.WEIGHT = "three_case"  # Eq. 6 | naive (DST's p_B[y_A]^gamma) | flip | stored (c_A^gamma) | threshold
    c.METHOD.GAMMA1 = 5.0  # 0 and 0: plain cross-entropy (CBST, curriculum labelling)
    c.METHOD.GAMMA2 = 5.0
    c.METHOD.GAMMA_RAMP = False  # gamma(t) = gamma exp(-5 (1 - t/T)^2) within each round
    c.METHOD.THRESHOLD = 0.9  # of "threshold" and of ONLINE
    c.METHOD.ONLINE = False  # one round in which the model labels each batch itself (OST-T); SHARES says nothing then
    c.METHOD.MIXUP = 0.0  # Beta(a, a); 0: none

    # ---------------------------------------------------------------- training
    c.SOLVER = CfgNode()
    c.SOLVER.BATCH_LABELED = 1  # images a step, over all GPUs
    c.SOLVER.BATCH_PSEUDO = 7
    c.SOLVER.BASELINE_LR = 0.002
    c.SOLVER.BASELINE_EPOCHS = 134.0  # passes over the labelled images, BATCH_LABELED + BATCH_PSEUDO a step
    c.SOLVER.BASELINE_FROM = ""  # OUTPUT_DIR of a run with the same baseline: taken from there, not trained again
    c.SOLVER.BASE_LR = 0.001  # of each round
    c.SOLVER.EPOCHS = 4.0  # of each round: passes over the pseudo-labelled images
    c.SOLVER.MAX_STEPS = 0  # at most so many steps a training; 0: no limit
    c.SOLVER.SCHEDULE = "poly"  # (1 - t/T)^0.9 | cosine
    c.SOLVER.MOMENTUM = 0.9
    c.SOLVER.WEIGHT_DECAY = 0.0005
    c.SOLVER.EMA = 0.0  # decay of the averaged model that labels and is tested; 0: none; .001: the authors' slip
    c.SOLVER.CHECKPOINT_PERIOD = 1000
    c.SOLVER.AMP = CfgNode()
    c.SOLVER.AMP.ENABLED = True
    c.SOLVER.AMP.DTYPE = "bfloat16"  # | float16
    c.TEST = CfgNode()
    c.TEST.EVAL_PERIOD = 500  # steps between evaluations on the selecting images; 0: at a training's end
    c.TEST.IMS_PER_BATCH = 8
    c.TEST.PICTURES = 4  # unlabelled images in pseudo_labels.png
    return c


CHOICES = {
    "DATASETS.NAME": datasets.NAMES,
    "SPLIT.SELECT": ("last", "valtiny", "tune", "test"),
    "MODEL.NAME": models.NAMES,
    "MODEL.DEPTH": models.DEPTHS,
    "MODEL.DEVICE": ("auto", "cuda", "cpu"),
    "INPUT.OPERATIONS": ("scaled", "authors", "none"),
    "METHOD.RULE": RULES,
    "METHOD.WEIGHT": KINDS,
    "SOLVER.SCHEDULE": ("poly", "cosine"),
    "SOLVER.AMP.DTYPE": ("bfloat16", "float16"),
}
LIMITS = {
    "SEED": (0, inf),
    "NUM_WORKERS": (0, inf),
    "SPLIT.RATIO": (1, inf),
    "SPLIT.FOLD": (0, inf),
    "MODEL.NUM_ACTIVE_RATES": (1, 4),
    "INPUT.FLIP": (0, 1),
    "METHOD.GAMMA1": (0, inf),
    "METHOD.GAMMA2": (0, inf),
    "METHOD.MIXUP": (0, inf),
    "METHOD.THRESHOLD": (0, 1),
    "SOLVER.BATCH_LABELED": (1, inf),
    "SOLVER.BATCH_PSEUDO": (1, inf),
    "SOLVER.BASELINE_LR": (0, inf),
    "SOLVER.BASELINE_EPOCHS": (0, inf),
    "SOLVER.BASE_LR": (0, inf),
    "SOLVER.EPOCHS": (0, inf),
    "SOLVER.MAX_STEPS": (0, inf),
    "SOLVER.EMA": (0, 1),
    "SOLVER.CHECKPOINT_PERIOD": (1, inf),
    "TEST.EVAL_PERIOD": (0, inf),
    "TEST.IMS_PER_BATCH": (1, inf),
    "TEST.PICTURES": (0, inf),
}


# A run may go on with other values of these; and what a baseline depends on.
FREE = (
    "OUTPUT_DIR",
    "DATASETS.ROOT",
    "MODEL.INIT_FILE",
    "NUM_WORKERS",
    "MODEL.DEVICE",
    "SOLVER.BASELINE_FROM",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.IMS_PER_BATCH",
    "TEST.PICTURES",
)
OF_BASELINE = (
    "DATASETS.",
    "SPLIT.",
    "MODEL.",
    "INPUT.",
    "SEED",
    "METHOD.MIXUP",
    "SOLVER.BASELINE_",
    "SOLVER.SCHEDULE",
    "SOLVER.MOMENTUM",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.EMA",
    "SOLVER.MAX_STEPS",
    "SOLVER.AMP.",
    "TEST.EVAL_PERIOD",
)


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> CfgNode:
    """Defaults, the file's `_BASE_`, the file, then KEY VALUE overrides.

    Raises:
        ConfigError: for an unknown key, a value that its key does not allow, or values that exclude each other.
    """
    options = {key: Row(key, "", "", choices=tuple(allowed)) for key, allowed in CHOICES.items()}
    options |= {key: Row(key, 0.0, "", low=low, high=high, kind=float) for key, (low, high) in LIMITS.items()}
    cfg = load_config(path, overrides, defaults=get_cfg(), options=options)
    m = cfg.METHOD
    _check_numbers("METHOD.SHARES", m.SHARES, range(100), 0, 1)
    if 0 in m.SHARES:
        raise ConfigError(f"METHOD.SHARES is {m.SHARES}; a round needs a share above 0")
    for key, excluded in (("RETRAIN", m.MUTUAL), ("ONLINE", m.MUTUAL or m.RETRAIN), ("KEEP_BEST", m.MUTUAL)):
        if m[key] and excluded:
            raise ConfigError(f"METHOD.{key} goes with one model only: set METHOD.MUTUAL False (ONLINE: RETRAIN too)")
    if m.KEEP_BEST and cfg.SPLIT.SELECT == "last":
        raise ConfigError("METHOD.KEEP_BEST needs images that tell which model is best: set SPLIT.SELECT valtiny")
    if m.RENORMALIZE and m.RULE == "authors":
        raise ConfigError(
            "METHOD.RENORMALIZE goes with METHOD.RULE exact: DMT's authors' rule keeps all of a class with less than "
            "one pixel in its share, and re-normalised by that threshold nearly every pixel would become that class"
        )
    if m.MIXUP and m.ONLINE:
        raise ConfigError("METHOD.MIXUP and METHOD.ONLINE exclude each other")
    if cfg.SPLIT.DIFFERENCE_MAXIMISED and not m.MUTUAL:
        raise ConfigError("SPLIT.DIFFERENCE_MAXIMISED makes two models differ: with METHOD.MUTUAL False it is False")
    i = cfg.INPUT
    _check_numbers("INPUT.SCALE", i.SCALE, (2,), 0.01, 100)
    _check_numbers("INPUT.SIDES", i.SIDES[:2], (0, 2), 1, inf, whole=True)
    _check_numbers("INPUT.SIDES", i.SIDES[2:], (len(i.SIDES[:2]),), 1, inf, whole=True)
    for key, count in (("CROP", (2,)), ("RESIZE", (0, 2)), ("PAD_TEST", (0, 2))):
        _check_numbers(f"INPUT.{key}", i[key], count, 1, inf, whole=True, rise=False)
    for key, known in (("INIT", None), ("NORMALIZATION", NORMALIZATIONS)):
        names = cfg.MODEL[key]
        if len(names) != 2 or (known and not set(names) <= set(known)):
            of = f", each one of {', '.join(known)}" if known else ""
            raise ConfigError(f"MODEL.{key} is {names}; it must name two, of model A and of model B{of}")
    return cfg


def _check_numbers(
    key: str, values: Sequence, counts: Sequence[int], low: float, high: float, whole: bool = False, rise: bool = True
) -> None:
    """Raise ConfigError unless `values` are so many numbers from `low` to `high` and, if they must, rise."""
    kinds = (int,) if whole else (int, float)
    right = len(values) in counts and all(isinstance(v, kinds) and low <= v <= high for v in values)
    if not right or (rise and list(values) != sorted(values)):
        raise ConfigError(
            f"{key} is {list(values)}; it must hold {'whole numbers' if whole else 'numbers'} from {low} to {high}"
            f"{', rising' if rise else ''}" + (f", {' or '.join(map(str, counts))} of them" if len(counts) < 9 else "")
        )


def differences(path: Path, cfg: CfgNode) -> dict[str, str]:
    """Key -> "KEY: there -> here" for every key of the config file `path` that `cfg` has otherwise, but for FREE."""
    there = dict(leaves(yaml.safe_load(path.read_text()) or {}))
    here = dict(leaves(yaml.safe_load(cfg.dump())))
    changed = [key for key in here if key not in FREE and there.get(key) != here[key]]
    return {key: f"{key}: {there.get(key)!r} -> {here[key]!r}" for key in changed}


def check_unchanged(path: Path, cfg: CfgNode) -> None:
    """Raise ConfigError where the run of the config file `path` would go on with another config."""
    if changed := differences(path, cfg):
        raise ConfigError(
            f"{path}: its run began with another config ({'; '.join(changed.values())}) and its finished stages would "
            "be mixed with others: give the old values, or another OUTPUT_DIR"
        )


def check_same_baseline(folder: Path, cfg: CfgNode) -> None:
    """Raise ConfigError unless the run in `folder` has the baseline that `cfg` describes."""
    path = folder / "config.yaml"
    if not path.exists():
        raise ConfigError(f"SOLVER.BASELINE_FROM is {folder}, which holds no run (no config.yaml)")
    changed = [line for key, line in differences(path, cfg).items() if key.startswith(OF_BASELINE)]
    batches = [c.SOLVER.BATCH_LABELED + c.SOLVER.BATCH_PSEUDO for c in (cfg, CfgNode(yaml.safe_load(path.read_text())))]
    if batches[0] != batches[1]:
        changed.append(f"SOLVER.BATCH_LABELED + BATCH_PSEUDO: {batches[1]} -> {batches[0]}")
    if changed:
        raise ConfigError(f"SOLVER.BASELINE_FROM: the baseline of {folder} is another one: {'; '.join(changed)}")
