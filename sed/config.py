"""Every configuration key, its default and its meaning: the one place that holds defaults.

Keys that Detectron2 has keep its names and meaning; ours stand beside them with the paper's symbol. A config file
holds only what differs; it may name one `_BASE_` file, which may name none. All an entry script needs is
`load_config("configs/quickstart.yaml", ["SOLVER.BASE_LR", "0.001"])`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

BASE_KEY = "_BASE_"
ZOO = "model_zoo://"  # begins a `_BASE_` that is a config of Detectron2's own model zoo


class ConfigError(ValueError):
    """A config file or an override that cannot be used; the message names the file, the key and the remedy."""


def get_cfg() -> CfgNode:
    """A fresh, mutable copy of the defaults."""
    return _defaults().clone()


def _defaults() -> CfgNode:
    c = CfgNode()
    c.VERSION = 2
    c.ENGINE = "auto"  # auto | detectron2 | torchvision
    c.OUTPUT_DIR = "./output"
    c.SEED = 0  # weights, data order and augmentation all follow from it

    # ---------------------------------------------------------------- model
    c.MODEL = CfgNode()
    c.MODEL.META_ARCHITECTURE = "ScaleConsistentRCNN"  # | ScaleConsistentRetinaNet | ScaleConsistentDETR
    c.MODEL.DEVICE = "auto"  # auto (cuda where there is one) | cuda | cpu
    c.MODEL.WEIGHTS = ""  # "" (from scratch) | imagenet | coco (torchvision's own enums) | a local file
    c.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # RGB, 0..255
    c.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    c.MODEL.BACKBONE = CfgNode()
    c.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"  # | build_small_fpn_backbone (METHOD 12)
    c.MODEL.BACKBONE.FREEZE_AT = 2  # 0: nothing, 1: stem, 2: stem and first stage, ...
    c.MODEL.RESNETS = CfgNode()
    c.MODEL.RESNETS.DEPTH = 50  # 18 | 50
    c.MODEL.RESNETS.NORM = "FrozenBN"  # FrozenBN | BN | GN
    c.MODEL.FPN = CfgNode()
    c.MODEL.FPN.OUT_CHANNELS = 256
    c.MODEL.ANCHOR_GENERATOR = CfgNode()
    c.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]  # one list a level
    c.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]  # one list for all levels, or one a level
    c.MODEL.RPN = CfgNode()
    c.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 2000
    c.MODEL.RPN.PRE_NMS_TOPK_TEST = 1000
    c.MODEL.RPN.POST_NMS_TOPK_TRAIN = 1000
    c.MODEL.RPN.POST_NMS_TOPK_TEST = 1000
    c.MODEL.RPN.NMS_THRESH = 0.7
    c.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 256
    c.MODEL.ROI_HEADS = CfgNode()
    c.MODEL.ROI_HEADS.NUM_CLASSES = 80  # K
    c.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
    c.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    c.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.5
    c.MODEL.ROI_BOX_HEAD = CfgNode()
    c.MODEL.ROI_BOX_HEAD.FC_DIM = 1024
    c.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    c.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 2
    c.MODEL.RETINANET = CfgNode()
    c.MODEL.RETINANET.NUM_CLASSES = 80  # K
    c.MODEL.RETINANET.SCORE_THRESH_TEST = 0.05
    c.MODEL.RETINANET.NMS_THRESH_TEST = 0.5
    c.MODEL.RETINANET.TOPK_CANDIDATES_TEST = 1000
    c.MODEL.DETR = CfgNode()  # the DETR family; of the other MODEL keys WEIGHTS, PIXEL_* and BACKBONE.FREEZE_AT count
    c.MODEL.DETR.CONFIG = ""  # which model: a config.json, a folder with one, or a name on the Hugging Face hub
    c.MODEL.DETR.NUM_CLASSES = 80  # K

    # ---------------------------------------------------------------- data
    c.DATASETS = CfgNode()
    c.DATASETS.TRAIN = ()  # labelled: names, or paths of COCO json files
    c.DATASETS.UNLABELED = ()  # names, COCO json files or folders of images; empty: split DATASETS.TRAIN
    c.DATASETS.TEST = ()
    c.DATASETS.IMAGE_ROOT = ""  # folder of the images of a json given by path; "": looked for beside the json
    c.DATALOADER = CfgNode()
    c.DATALOADER.NUM_WORKERS = 4
    c.DATALOADER.ASPECT_RATIO_GROUPING = True
    c.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True  # labelled images without any box
    c.INPUT = CfgNode()
    c.INPUT.MIN_SIZE_TRAIN = (640, 800)  # short side, drawn from the range
    c.INPUT.MAX_SIZE_TRAIN = 1333
    c.INPUT.MIN_SIZE_TEST = 800
    c.INPUT.MAX_SIZE_TEST = 1333
    c.INPUT.RANDOM_FLIP = "horizontal"  # horizontal (p = 0.5) | none
    c.INPUT.CUTOUT_FILL = "random"  # random (noise per pixel) | constant
    c.INPUT.GEOMETRIC = "none"  # none | randaugment (A.2: rotate, translate or shear, before the views part)
    c.INPUT.GEOMETRIC_LEVEL = 5.0  # of RandAugment's 10

    # ---------------------------------------------------------------- optimisation
    c.SOLVER = CfgNode()
    c.SOLVER.OPTIMIZER = "SGD"  # SGD | AdamW
    c.SOLVER.BASE_LR = 0.01
    c.SOLVER.BACKBONE_MULTIPLIER = 1.0
    c.SOLVER.MOMENTUM = 0.9
    c.SOLVER.WEIGHT_DECAY = 0.0001
    c.SOLVER.WEIGHT_DECAY_NORM = 0.0
    c.SOLVER.MAX_ITER = 180000
    c.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"  # | WarmupCosineLR
    c.SOLVER.STEPS = (120000, 160000)
    c.SOLVER.GAMMA = 0.1
    c.SOLVER.WARMUP_ITERS = 1000
    c.SOLVER.WARMUP_FACTOR = 0.001
    c.SOLVER.ACCUMULATE = 1  # batches a step
    c.SOLVER.REFERENCE_WORLD_SIZE = 0  # processes that this config is meant for; with others it is scaled; 0: never
    c.SOLVER.CHECKPOINT_PERIOD = 5000
    c.SOLVER.CHECKPOINTS_KEPT = 2
    c.SOLVER.AMP = CfgNode()
    c.SOLVER.AMP.ENABLED = False
    c.SOLVER.AMP.DTYPE = "bfloat16"  # bfloat16 | float16 (with loss scaling)
    c.SOLVER.CLIP_GRADIENTS = CfgNode()
    c.SOLVER.CLIP_GRADIENTS.ENABLED = False
    c.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"  # value | norm (each parameter's) | full_model (norm of all together)
    c.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0

    # ---------------------------------------------------------------- evaluation
    c.TEST = CfgNode()
    c.TEST.EVAL_PERIOD = 5000
    c.TEST.IMS_PER_BATCH = 8
    c.TEST.DETECTIONS_PER_IMAGE = 100

    # ---------------------------------------------------------------- semi-supervised training, all methods
    c.SEMI = CfgNode()
    c.SEMI.METHOD = "sed"  # supervised | sed | pseudo_label
    c.SEMI.LABELED_PERCENT = 0.0  # split of DATASETS.TRAIN where DATASETS.UNLABELED is empty; 0: see the next
    c.SEMI.LABELED_COUNT = 0  # the same as a number of images
    c.SEMI.FOLD = 0  # which split; a fold is a seed of the split and of nothing else
    c.SEMI.IMS_PER_BATCH_LABELED = 8  # n_s, over all processes
    c.SEMI.IMS_PER_BATCH_UNLABELED = 8  # n_u, over all processes
    c.SEMI.BURN_IN = 10000  # supervised steps before the teacher is copied from the student
    c.SEMI.RAMP_STEPS = 0  # after burn-in the unsupervised weights rise linearly over so many steps; 0: at once
    c.SEMI.STRONG_LABELED = True  # every second labelled image also gets the strong view; the control gets the same
    c.SEMI.EMA = CfgNode()
    c.SEMI.EMA.POLICY = "step"  # a: step (START, then END from the first LR drop) | cosine | constant (START)
    c.SEMI.EMA.START = 0.99
    c.SEMI.EMA.END = 0.9
    c.SEMI.COLLAPSE_STEPS = 1000  # warn when the teacher finds nothing for so many steps; 0: never

    # ---------------------------------------------------------------- SED (METHOD 3, 4, 6, 7)
    c.SED = CfgNode()
    c.SED.LAMBDA_SCALE = 0.5  # lambda_s; 0 leaves the term and its network passes out
    c.SED.LAMBDA_DISTILL = 1.0  # lambda_d; 0 likewise
    c.SED.DISTILL_TARGET = "soft"  # soft: Eq. 3 | hard: the teacher's most likely answer, its rival in Tab. 4
    c.SED.SCALE_TARGET = "student"  # student: Eq. 2 as printed | teacher: the anchored form (METHOD 11)
    c.SED.SCALE_SOURCE = "strong"  # which student view is P(X) of Eq. 2: strong | weak (one more pass)
    c.SED.MAX_SCALE = 1  # S: the small view is 1/2^s, s drawn from {1..S}
    c.SED.REGIONS_PER_VIEW = 256  # proposals a view for the region terms (pairs an image: twice that)
    c.SED.LAMBDA_IOU = 1.0  # lambda of Alg. 1: GIoU beside the class divergence when queries are matched
    c.SED.REWEIGHT = CfgNode()
    c.SED.REWEIGHT.KIND = "histogram"  # histogram (Eq. 5) | none | ohem | focal
    c.SED.REWEIGHT.BINS = 10  # M
    c.SED.REWEIGHT.OVER_PROCESSES = False  # False: each process counts its own samples | True: all together
    c.SED.REWEIGHT.OHEM_FRACTION = 0.1
    c.SED.REWEIGHT.FOCAL_GAMMA = 2.0

    # ---------------------------------------------------------------- hard pseudo-labels (Unbiased Teacher)
    c.PSEUDO_LABEL = CfgNode()
    c.PSEUDO_LABEL.THRESHOLD = 0.7
    c.PSEUDO_LABEL.WEIGHT = 4.0
    c.PSEUDO_LABEL.BOX_LOSS = False  # Unbiased Teacher trains no boxes on pseudo-labels
    return c


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    defaults: CfgNode | None = None,
    choices: Mapping[str, Sequence] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> CfgNode:
    """Defaults, then the file's `_BASE_`, then the file, then `KEY VALUE` overrides.

    Args:
        path: YAML; None: the defaults.
        overrides: KEY, VALUE, KEY, VALUE, ...
        defaults: what the file changes; default: `get_cfg()`. Another engine has more keys.
        choices: the values that keys are limited to; default: those of the native engine.
        limits: the ranges that keys are limited to, likewise.

    Raises:
        ConfigError: for a missing file, an unknown key (naming the nearest known one), a value of another type,
            a second `_BASE_` hop or an odd number of override words.
    """
    cfg = get_cfg() if defaults is None else defaults
    base, layers = read_layers(path)
    if base and defaults is None:
        raise ConfigError(f"{path}: {BASE_KEY} {base} is a Detectron2 config, but ENGINE is not detectron2")
    layers += [("command line", node) for node in _pairs(overrides)]
    for origin, values in layers:
        _merge(cfg, values, origin)
    check(cfg, CHOICES if choices is None else choices, LIMITS if limits is None else limits)
    return cfg


def read_layers(path: str | Path | None) -> tuple[str, list[tuple[str, dict]]]:
    """The files of a config, as (origin, values), the base first; and the Detectron2 config that they start from.

    The latter is "" but for a `_BASE_` that begins with "model_zoo://" (only the Detectron2 engine knows those).
    """
    if path is None:
        return "", []
    values = _read_yaml(Path(path))
    layers = [(str(path), values)]
    base = values.pop(BASE_KEY, None)
    if base is not None and not base.startswith(ZOO):
        base_path = Path(path).parent / base
        base_values = _read_yaml(base_path)
        layers.insert(0, (str(base_path), base_values))
        base = base_values.pop(BASE_KEY, None)
        if base is not None and not base.startswith(ZOO):
            raise ConfigError(f"{base_path}: a {BASE_KEY} file may not name a {BASE_KEY} itself; copy its keys")
    return base or "", layers


def read_value(key: str, path: str | Path | None, overrides: Sequence[str] = ()) -> object:
    """What a top-level key will be, before the other keys are known to be right. For ENGINE."""
    value = get_cfg()[key]
    for _, values in read_layers(path)[1] + [("", node) for node in _pairs(overrides)]:
        value = values.get(key, value)
    return value


def _pairs(overrides: Sequence[str]) -> list[dict]:
    if len(overrides) % 2:
        raise ConfigError(f"command line: expected pairs KEY VALUE, got {' '.join(overrides)!r}")
    nodes = []
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        *parents, leaf = key.split(".")
        node: dict = {leaf: CfgNode._decode_cfg_value(value)}
        for parent in reversed(parents):
            node = {parent: node}
        nodes.append(node)
    return nodes


def _read_yaml(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(values).__name__}")
    return values


def leaves(node: dict, prefix: str = "") -> list[tuple[str, object]]:
    """Every (dotted key, value) of a tree of mappings."""
    rows: list[tuple[str, object]] = []
    for key, value in node.items():
        full = f"{prefix}{key}"
        rows += leaves(value, f"{full}.") if isinstance(value, dict) else [(full, value)]
    return rows


def _merge(cfg: CfgNode, values: dict, origin: str) -> None:
    known = dict(leaves(cfg))
    for key, value in leaves(values):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{origin}: unknown key {key}; the nearest known one is {near}")
        *parents, leaf = key.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        try:
            node[leaf] = _coerce(value, known[key])
        except (TypeError, ValueError):
            want, got = type(known[key]).__name__, type(value).__name__
            raise ConfigError(f"{origin}: {key} expects {want} (default {known[key]!r}), got {got} {value!r}") from None


def _coerce(value: object, default: object) -> object:
    """`value` in the type of `default`; only conversions that lose nothing."""
    if default is None:  # Detectron2's "as another key": no type to compare with
        return value
    if isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
    elif isinstance(default, str):
        if value is None:
            return ""
        if isinstance(value, (str, int, float)):
            return str(value)
    elif isinstance(default, float):
        if isinstance(value, (int, float, str)):  # YAML reads 1e-4 as a string
            return float(value)
    elif isinstance(default, int):
        if isinstance(value, int):
            return value
    elif isinstance(default, (tuple, list)):
        if isinstance(value, str):  # one name where names are expected
            return type(default)([value])
        if isinstance(value, (tuple, list)):
            return type(default)(value)
    raise TypeError


CLASSES_KEYS = {  # meta-architecture -> the key of K
    "ScaleConsistentRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "ScaleConsistentRetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "ScaleConsistentDETR": "MODEL.DETR.NUM_CLASSES",
}
CHOICES = {
    "ENGINE": ("auto", "detectron2", "torchvision"),
    "MODEL.META_ARCHITECTURE": tuple(CLASSES_KEYS),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "GN"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "INPUT.CUTOUT_FILL": ("random", "constant"),
    "INPUT.GEOMETRIC": ("none", "randaugment"),
    "SOLVER.OPTIMIZER": ("SGD", "AdamW"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.AMP.DTYPE": ("bfloat16", "float16"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "SEMI.METHOD": ("supervised", "sed", "pseudo_label"),
    "SEMI.EMA.POLICY": ("step", "cosine", "constant"),
    "SED.DISTILL_TARGET": ("soft", "hard"),
    "SED.SCALE_TARGET": ("student", "teacher"),
    "SED.SCALE_SOURCE": ("strong", "weak"),
    "SED.REWEIGHT.KIND": ("histogram", "none", "ohem", "focal"),
}


LIMITS = {"SEMI.IMS_PER_BATCH_LABELED": (1, inf), "SED.MAX_SCALE": (1, inf), "INPUT.GEOMETRIC_LEVEL": (0, 10)}


def check(cfg: CfgNode, choices: Mapping[str, Sequence], limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise ConfigError for a value that its key does not allow."""
    values = dict(leaves(cfg))
    for key, allowed in choices.items():
        if values[key] not in allowed:
            raise ConfigError(f"{key} is {values[key]!r}; it must be one of {', '.join(map(str, allowed))}")
    for key, (low, high) in limits.items():
        if not low <= values[key] <= high:
            raise ConfigError(f"{key} must be {f'at least {low}' if high == inf else f'from {low} to {high}'}")
