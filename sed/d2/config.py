"""Configs on Detectron2: our keys beside its own, and our YAML files with the same meaning as on the native engine.

    cfg = get_cfg(); add_sed_config(cfg); cfg.merge_from_file(...)     as in any Detectron2 project: its own defaults
    cfg = load_config("configs/coco_10.yaml", ["SEED", "1"])           our files: our defaults (sed.defaults)

A file of ours may also start from a config of Detectron2's model zoo, and then has Detectron2's defaults:

    _BASE_: model_zoo://COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from sed import config
from sed import defaults as ours
from sed.config import ZOO, ConfigError, leaves
from sed.d2.backbone import register_timm
from sed.detectors.timm_backbone import PREFIX, expected_pixels
from sed.options.option import unlikely
from sed.runtime.checkpoint_files import read
from sed.runtime.devices import device_name
from sed.runtime.scaling import describe, scaling

log = logging.getLogger(__name__)
# What our defaults are in keys that only Detectron2 has: a pyramid, and the preprocessing of torchvision's weights
IMPLIED: dict[str, Any] = {
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,  # L1, as in torchvision and in Detectron2's own RetinaNet configs
}
META_ARCHITECTURES = {"GeneralizedRCNN": "ScaleConsistentRCNN", "RetinaNet": "ScaleConsistentRetinaNet"}
DETR = "ScaleConsistentDETR"  # the family of transformers; Detectron2 itself has none
# MODEL.WEIGHTS by name, as on the native engine (there torchvision's files)
IMAGENET = {18: "imagenet", 50: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"}  # 18: torchvision's own file
# Keys of Detectron2's own that it does not check, and whose nonsense would only be seen in the results
CHECKED = {
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "SOLVER.BASE_LR",
    "SOLVER.GAMMA",
    "SOLVER.MOMENTUM",
    "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.STEPS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.NMS_THRESH_TEST",
}
COCO = {
    "ScaleConsistentRCNN": (
        "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
        "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl",
    ),
    "ScaleConsistentRetinaNet": (
        "COCO-Detection/retinanet_R_50_FPN_3x.yaml",
        "detectron2://COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl",
    ),
}
# What weights expect of their input; files of ours name it, and loading compares
PIXELS = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
PREPROCESSING = (*PIXELS, "MODEL.RESNETS.STRIDE_IN_1X1")
TRAINED_FOR = "trained_for"  # the entry of those files
ANCHORS = ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")


def add_sed_config(cfg: CfgNode) -> None:
    """Add every key of `sed.defaults` that Detectron2 does not have, with its default; change nothing else."""
    known = dict(leaves(cfg))
    for key, value in leaves(ours.get_cfg()):
        if key not in known:
            _set(cfg, key, value)


def load_config(path: str | Path | None = None, overrides: list[str] | tuple[str, ...] = ()) -> CfgNode:
    """A config file of ours, ready for `SemiSupervisedTrainer`; see the module's docstring.

    Names that both engines share become Detectron2's own here: MODEL.DEVICE auto, MODEL.WEIGHTS imagenet and coco,
    MODEL.BACKBONE.NAME of a one-stage detector. Where MODEL.WEIGHTS is a file that this project exported, its input
    format and anchors are the default.

    Raises:
        ConfigError: as `sed.config.load_config`; also for what Detectron2 cannot do.
    """
    base, layers = config.read_layers(path)
    cfg = _zoo_defaults(base) if base else _own_defaults()
    stock = dict(leaves(detectron2_cfg()))
    options = {key: row for key, row in ours.ROWS.items() if key not in stock or key in CHECKED}
    config.load_config(path, overrides, defaults=cfg, options=options)
    _resolve(cfg, from_zoo=bool(base))
    _adopt(cfg, {key for _, values in layers for key, _ in leaves(values)} | set(overrides[::2]))
    return cfg


def scaled(cfg: CfgNode, world_size: int) -> tuple[CfgNode, list[str]]:
    """`cfg` for so many processes where SOLVER.REFERENCE_WORLD_SIZE is set, and what was changed, in lines.

    Raises:
        DataError: see `sed.runtime.scaling.scaling`.
    """
    changes = scaling(cfg, world_size)
    if not changes:
        return cfg, []
    lines, frozen, cfg = describe(cfg, changes), cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    for key, value in changes.items():
        _set(cfg, key, value)
    _shorten_schedule(cfg.SOLVER)  # rounding may have brought the ends of two periods together
    cfg.SOLVER.IMS_PER_BATCH = cfg.SEMI.IMS_PER_BATCH_LABELED + cfg.SEMI.IMS_PER_BATCH_UNLABELED
    if frozen:
        cfg.freeze()
    return cfg, lines


def stock_config(cfg: CfgNode, weights: str) -> CfgNode:
    """`cfg` as a config of Detectron2 alone: none of our keys, its own meta-architecture. For its demo and tools.

    A user's subclass of one of ours becomes the stock class, which is what Detectron2 alone can build.

    Raises:
        ConfigError: for ScaleConsistentDETR, which Detectron2 alone cannot build; a run leaves a folder of
            transformers instead.
    """
    mine = architecture(cfg)
    if mine == DETR:
        raise ConfigError(f"MODEL.META_ARCHITECTURE {DETR}: Detectron2 alone has no such detector; use transformers")
    stock = detectron2_cfg()
    own = dict(leaves(cfg))
    for key, _ in leaves(stock):
        _set(stock, key, own[key])
    theirs = {ours: name for name, ours in META_ARCHITECTURES.items()}
    stock.MODEL.META_ARCHITECTURE = theirs.get(mine, cfg.MODEL.META_ARCHITECTURE)
    stock.MODEL.WEIGHTS = weights
    return stock


def zoo_config(name: str) -> CfgNode:
    """A config of Detectron2's model zoo, such as "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"."""
    package = Path(detectron2.__file__).resolve().parent
    paths = [package / "model_zoo" / "configs" / name, package.parent / "configs" / name]  # installed; a checkout
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise ConfigError(f"{ZOO}{name}: this Detectron2 has no such config; looked in {paths[0]}")
    cfg = detectron2_cfg()
    cfg.merge_from_file(str(path))
    return cfg


def architecture(cfg: CfgNode) -> str:
    """Which of ours MODEL.META_ARCHITECTURE is, or is a registered subclass of; "" for any other."""
    name = cfg.MODEL.META_ARCHITECTURE
    found = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    for mine in (*META_ARCHITECTURES.values(), DETR):
        if isinstance(found, type) and issubclass(found, META_ARCH_REGISTRY.get(mine)):
            return mine
    return ""


def num_classes(cfg: CfgNode) -> tuple[str, int]:
    """The key of K and its value."""
    key = ours.CLASSES_KEYS.get(architecture(cfg), "MODEL.ROI_HEADS.NUM_CLASSES")
    return key, _pick(cfg, (key,))[key]


def preprocessing(cfg: CfgNode) -> dict[str, Any]:
    """What a detector of `cfg` expects of its input: {dotted key: value}."""
    return _pick(cfg, PIXELS if architecture(cfg) == DETR else PREPROCESSING)


def trained_for(cfg: CfgNode) -> dict[str, Any]:
    """What an exported file says beside its weights: {dotted key: value}."""
    return preprocessing(cfg) | ({} if architecture(cfg) == DETR else _pick(cfg, ANCHORS))


def _pick(cfg: CfgNode, keys: tuple[str, ...]) -> dict[str, Any]:
    values = dict(leaves(cfg))
    return {key: values[key] for key in keys}


def _adopt(cfg: CfgNode, explicit: set[str]) -> None:
    """What an exported file in MODEL.WEIGHTS was trained for, where the config does not say it."""
    path = Path(cfg.MODEL.WEIGHTS)
    theirs = read(path).get(TRAINED_FOR) if path.suffix == ".pth" and path.is_file() else None
    for key, value in _pick(cfg, (*PREPROCESSING, *ANCHORS)).items() if isinstance(theirs, dict) else ():
        if key not in theirs or key in explicit:
            continue
        found, row = theirs[key], ours.ROWS.get(key)
        if type(found) is not type(value) or unlikely(found) or (row and row.wrong(found)):
            raise ConfigError(
                f"{path}: its {TRAINED_FOR} has {key} {str(found)[:60]!r}; expected one such as {value!r}"
            )
        _set(cfg, key, found)


def _own_defaults() -> CfgNode:
    cfg = detectron2_cfg()
    for key, value in [*leaves(ours.get_cfg()), *IMPLIED.items()]:
        _set(cfg, key, value)
    return cfg


def _zoo_defaults(base: str) -> CfgNode:
    cfg = zoo_config(base.removeprefix(ZOO))
    add_sed_config(cfg)
    theirs = cfg.MODEL.META_ARCHITECTURE
    if theirs not in META_ARCHITECTURES:
        raise ConfigError(
            f"{base}: {theirs} has no scale-consistent form; there is one of {', '.join(META_ARCHITECTURES)}"
        )
    cfg.MODEL.META_ARCHITECTURE = META_ARCHITECTURES[theirs]
    cfg.MODEL.DEVICE, cfg.SEED = "auto", ours.get_cfg().SEED
    return cfg


def _resolve(cfg: CfgNode, from_zoo: bool) -> None:
    """Put Detectron2's own names where ours stand for both engines."""
    m = cfg.MODEL
    mine = architecture(cfg)
    if not mine:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {m.META_ARCHITECTURE!r}; it must be one of "
            f"{', '.join([*META_ARCHITECTURES.values(), DETR])}, or a registered subclass of one"
        )
    for key in ("MASK_ON", "KEYPOINT_ON"):
        if m[key]:
            raise ConfigError(f"MODEL.{key} is True, but only boxes are learned here; set it to False to train those")
    if cfg.SOLVER.ACCUMULATE != 1:
        raise ConfigError(
            "SOLVER.ACCUMULATE: Detectron2's trainers take one batch a step; leave it 1, or set ENGINE torchvision"
        )
    try:
        m.DEVICE = device_name(m.DEVICE)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if not sizes or min(sizes) < 0:
        raise ConfigError(f"INPUT.MIN_SIZE_TRAIN is {tuple(sizes)}; expected one length in pixels or a range of two")
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        cfg.INPUT.MIN_SIZE_TRAIN = (min(sizes), max(sizes))
    _shorten_schedule(cfg.SOLVER)
    cfg.SOLVER.IMS_PER_BATCH = cfg.SEMI.IMS_PER_BATCH_LABELED + cfg.SEMI.IMS_PER_BATCH_UNLABELED
    if mine == DETR:  # its backbone and the names of its weights are those of `sed.detectors.detr_build`
        if m.WEIGHTS == "imagenet" and from_zoo:
            _set_preprocessing(cfg, _own_defaults())
        return
    if m.RESNETS.DEPTH in (18, 34):
        m.RESNETS.RES2_OUT_CHANNELS = 64  # of the basic blocks
    if not from_zoo:
        _pyramid_of(m, mine)
    if m.BACKBONE.NAME.startswith(PREFIX):
        register_timm(m.BACKBONE.NAME)
        if m.WEIGHTS == "imagenet" and from_zoo:  # whose configs expect Caffe's BGR
            cfg.INPUT.FORMAT = "RGB"
            stock = detectron2_cfg().MODEL
            if (list(m.PIXEL_MEAN), list(m.PIXEL_STD)) == (list(stock.PIXEL_MEAN), list(stock.PIXEL_STD)):
                pixels = expected_pixels(m.BACKBONE.NAME.removeprefix(PREFIX))
                m.PIXEL_MEAN, m.PIXEL_STD = list(pixels["mean"]), list(pixels["std"])
        elif m.WEIGHTS == "imagenet" and cfg.INPUT.FORMAT != "RGB":
            raise ConfigError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}: the weights of {m.BACKBONE.NAME} expect RGB")
    elif m.BACKBONE.NAME not in BACKBONE_REGISTRY:
        known = ", ".join(sorted(name for name, _ in BACKBONE_REGISTRY if not name.startswith(PREFIX)))
        raise ConfigError(
            f"MODEL.BACKBONE.NAME {m.BACKBONE.NAME}: Detectron2 has {known}; a network of timm is {PREFIX}NAME"
        )
    elif m.WEIGHTS == "imagenet":
        if m.RESNETS.DEPTH not in IMAGENET:
            raise ConfigError(
                f"MODEL.WEIGHTS imagenet: there are weights for depth 18 and 50, not {m.RESNETS.DEPTH}; name a file"
            )
        m.WEIGHTS = IMAGENET[m.RESNETS.DEPTH]
        if from_zoo:  # whose configs expect other weights' preprocessing
            _set_preprocessing(cfg, _own_defaults())
    if m.WEIGHTS == "coco":
        name, weights = COCO[mine]
        zoo = zoo_config(name)
        if m.RESNETS.DEPTH != 50 or m.BACKBONE.NAME != zoo.MODEL.BACKBONE.NAME:
            raise ConfigError(
                f"MODEL.WEIGHTS coco: there are weights for depth 50 and {zoo.MODEL.BACKBONE.NAME}, not for depth "
                f"{m.RESNETS.DEPTH} and {m.BACKBONE.NAME}; name a file"
            )
        m.WEIGHTS = weights
        _set_preprocessing(cfg, zoo)
        if mine == "ScaleConsistentRetinaNet":
            m.ANCHOR_GENERATOR.SIZES = zoo.MODEL.ANCHOR_GENERATOR.SIZES


def _shorten_schedule(s: CfgNode) -> None:
    """Drops and warm-up of a run that is shorter than they are, as the native engine has it; Detectron2 would fail."""
    reached = tuple(step for step in s.STEPS if step < s.MAX_ITER)
    if len(reached) < len(s.STEPS):
        log.warning("SOLVER.STEPS %s: those from SOLVER.MAX_ITER %d on are never reached", tuple(s.STEPS), s.MAX_ITER)
    s.STEPS, s.WARMUP_ITERS = reached, min(s.WARMUP_ITERS, s.MAX_ITER - 1)


def _pyramid_of(m: CfgNode, mine: str) -> None:
    """The levels that the heads of our files' two backbones read."""
    if m.BACKBONE.NAME == "build_small_fpn_backbone":
        levels = ["p2", "p3", "p4", "p5"]
        for head in (m.RPN, m.ROI_HEADS, m.RETINANET):
            head.IN_FEATURES = list(levels)
    elif mine == "ScaleConsistentRetinaNet" and m.BACKBONE.NAME == "build_resnet_fpn_backbone":
        m.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"  # P3..P7
        m.RESNETS.OUT_FEATURES = m.FPN.IN_FEATURES = ["res3", "res4", "res5"]


def _set_preprocessing(cfg: CfgNode, source: CfgNode) -> None:
    for key, value in preprocessing(source).items():
        _set(cfg, key, value)


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    node = cfg
    *parents, leaf = key.split(".")
    for parent in parents:
        if parent not in node:
            node[parent] = CfgNode()
        node = node[parent]
    node[leaf] = copy.deepcopy(value)  # a list of a config belongs to that config alone
