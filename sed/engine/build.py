"""From a config to the parts of a run on the native engine: data, detector, trainer. Those take scalars alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from sed.config import ConfigError, leaves
from sed.core.structures import Images
from sed.data.catalog import load_datasets
from sed.data.loaders import test_loader
from sed.data.mapper import ImageInfo, Mapper
from sed.data.partition import Data, check_num_classes
from sed.data.records import Dataset
from sed.defaults import CLASSES_KEYS
from sed.detectors.base import Detector
from sed.detectors.build import DetectorSpec, build_detector
from sed.detectors.detr import NotADetrError
from sed.detectors.detr_build import build_detr, load_detr_weights
from sed.detectors.timm_backbone import PREFIX
from sed.detectors.weights import load_pretrained
from sed.engine import checkpoint
from sed.engine.solver import Clip, LearningRate, Precision, build_optimizer, lr_factor
from sed.engine.trainer import LoopOptions, Trainer
from sed.evaluation.coco import Results, evaluate, tell_crowded
from sed.methods.base import Method
from sed.runtime.data import Streams, build_data, build_streams
from sed.runtime.devices import find_device
from sed.runtime.launch import rank, world_size

log = logging.getLogger(__name__)
TestBatches = Callable[[], Iterator[tuple[Images, list[ImageInfo]]]]


def resolve_device(name: str) -> torch.device:
    """MODEL.DEVICE as this process's device.

    Raises:
        ConfigError: for a device that there is not.
    """
    try:
        return find_device(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None


# ---------------------------------------------------------------------------------------------- data
def read_data(cfg: CfgNode) -> Data:
    """All data sets of `cfg`, split and checked, see `sed.runtime.data.build_data`; at most one test set."""
    return build_data(
        cfg,
        _num_classes(cfg),
        load=load_datasets,
        load_tests=lambda: [build_test_set(cfg)] if cfg.DATASETS.TEST else [],
    )


def build_test_set(cfg: CfgNode) -> Dataset:
    """Read DATASETS.TEST as one set; it may lack classes of the model, but may not have more of them."""
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty: set it to the name or the COCO json of the images to evaluate on")
    test = load_datasets(cfg.DATASETS.TEST, cfg.DATASETS.IMAGE_ROOT)
    key, num_classes = _num_classes(cfg)
    if len(test.classes) > num_classes:
        check_num_classes(test, num_classes, key)
    tell_crowded(test, cfg.TEST.DETECTIONS_PER_IMAGE)
    return test


def check_classes(cfg: CfgNode, test: Dataset) -> None:
    """Raise DataError unless a set has as many classes as the model."""
    key, num_classes = _num_classes(cfg)
    check_num_classes(test, num_classes, key)


def _num_classes(cfg: CfgNode) -> tuple[str, int]:
    """The config key of the number of classes, and that number."""
    key = CLASSES_KEYS[cfg.MODEL.META_ARCHITECTURE]
    return key, dict(leaves(cfg))[key]


def open_streams(cfg: CfgNode, data: Data, multiple: int) -> Streams:
    """This process's labelled and unlabelled stream, see `sed.runtime.data.build_streams`."""
    i = cfg.INPUT
    if not i.MIN_SIZE_TRAIN or min(i.MIN_SIZE_TRAIN) < 1:
        sizes = tuple(i.MIN_SIZE_TRAIN)
        raise ConfigError(f"INPUT.MIN_SIZE_TRAIN is {sizes}; expected one length in pixels or a range of two")
    sizes = (min(i.MIN_SIZE_TRAIN), max(i.MIN_SIZE_TRAIN))
    mapper = partial(Mapper, min_size=sizes, max_size=i.MAX_SIZE_TRAIN, flip=i.RANDOM_FLIP == "horizontal")
    return build_streams(cfg, data, mapper, multiple, seed=cfg.SEED, rank=rank(), world_size=world_size())


def test_mapper(cfg: CfgNode) -> Mapper:
    """What reads and resizes test images."""
    size = cfg.INPUT.MIN_SIZE_TEST
    return Mapper((size, size), cfg.INPUT.MAX_SIZE_TEST, flip=False)


test_mapper.__test__ = False  # type: ignore[attr-defined]  # not a pytest function


def batches_of(cfg: CfgNode, test: Dataset, multiple: int, rank: int = 0, world_size: int = 1) -> TestBatches:
    """A function that starts a new pass over a process's share of the test images."""
    mapper, workers = test_mapper(cfg), cfg.DATALOADER.NUM_WORKERS
    return partial(test_loader, test.records, mapper, cfg.TEST.IMS_PER_BATCH, workers, rank, world_size, multiple)


def build_evaluator(cfg: CfgNode, test: Dataset, device: torch.device) -> Callable[[Detector], Results]:
    """A function: detector -> COCO metrics on `test`, computed by all processes together."""

    def run(detector: Detector) -> Results:
        batches = batches_of(cfg, test, detector.size_divisibility, rank(), world_size())
        return evaluate(detector, batches(), test, device)

    return run


# ---------------------------------------------------------------------------------------------- model
def detector_spec(cfg: CfgNode) -> DetectorSpec:
    """The detector that the sections MODEL and TEST of the config describe."""
    m, t = cfg.MODEL, cfg.TEST
    one_stage = m.META_ARCHITECTURE.endswith("RetinaNet")
    name, backbones = m.BACKBONE.NAME, {"build_resnet_fpn_backbone": "resnet", "build_small_fpn_backbone": "small"}
    if name not in backbones and not name.startswith(PREFIX):
        raise ConfigError(f"MODEL.BACKBONE.NAME is {name!r}; it must be one of {', '.join(backbones)} or {PREFIX}NAME")
    head = m.RETINANET if one_stage else m.ROI_HEADS
    return DetectorSpec(
        architecture="retinanet" if one_stage else "rcnn",
        num_classes=head.NUM_CLASSES,
        backbone=backbones.get(name, name),
        depth=m.RESNETS.DEPTH,
        norm=m.RESNETS.NORM,
        freeze_at=m.BACKBONE.FREEZE_AT,
        fpn_channels=m.FPN.OUT_CHANNELS,
        fpn_norm=m.FPN.NORM,
        anchor_sizes=m.ANCHOR_GENERATOR.SIZES,
        aspect_ratios=m.ANCHOR_GENERATOR.ASPECT_RATIOS,
        pixel_mean=m.PIXEL_MEAN,
        pixel_std=m.PIXEL_STD,
        rpn_topk=(
            m.RPN.PRE_NMS_TOPK_TRAIN,
            m.RPN.PRE_NMS_TOPK_TEST,
            m.RPN.POST_NMS_TOPK_TRAIN,
            m.RPN.POST_NMS_TOPK_TEST,
        ),
        rpn_nms=m.RPN.NMS_THRESH,
        rpn_batch=m.RPN.BATCH_SIZE_PER_IMAGE,
        region_batch=m.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
        fc_dim=m.ROI_BOX_HEAD.FC_DIM,
        pool_resolution=m.ROI_BOX_HEAD.POOLER_RESOLUTION,
        pool_sampling=m.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
        score_threshold=head.SCORE_THRESH_TEST,
        nms_threshold=head.NMS_THRESH_TEST,
        detections=t.DETECTIONS_PER_IMAGE,
        dense_topk=m.RETINANET.TOPK_CANDIDATES_TEST,
    )


def build_student(cfg: CfgNode, weights: str) -> Detector:
    """The detector with `weights`: "" (fresh), "imagenet", "coco", a file, a checkpoint or a transformers folder."""
    m = cfg.MODEL
    try:
        if _is_detr(cfg):
            limit, frozen = cfg.TEST.DETECTIONS_PER_IMAGE, m.BACKBONE.FREEZE_AT
            detector = build_detr(m.DETR.CONFIG, m.DETR.NUM_CLASSES, m.PIXEL_MEAN, m.PIXEL_STD, limit, frozen)
        else:
            detector = build_detector(detector_spec(cfg))
    except (ValueError, NotADetrError) as error:  # parts that do not go together
        raise ConfigError(str(error)) from None
    if _is_detr(cfg):
        load_detr_weights(detector, weights, m.DETR.CONFIG)
    else:
        load_pretrained(detector, weights, m.RESNETS.DEPTH)
    return detector


def trained_detector(cfg: CfgNode, weights: str, which: str = "teacher") -> Detector:
    """The detector with weights that make all of it: a plain file, a checkpoint, "coco", a transformers folder.

    Args:
        cfg: MODEL and TEST are read.
        weights: any of those.
        which: "teacher" or "student" of a full checkpoint.

    Raises:
        CheckpointError: no such file, or one that does not fit.
    """
    if weights == "coco" or (_is_detr(cfg) and Path(weights).is_dir()):
        return build_student(cfg, weights)
    detector = build_student(cfg, "")
    checkpoint.load_weights(detector, weights, which)
    return detector


def _is_detr(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "ScaleConsistentDETR"


# ---------------------------------------------------------------------------------------------- trainer
def build_trainer(cfg: CfgNode, method: Method, data: Data, device: torch.device, folder: Path) -> Trainer:
    """The trainer of a run: optimizer, learning rate, streams and evaluation put together; `method` is on `device`."""
    o = cfg.SOLVER
    if cfg.SEMI.METHOD != "supervised" and cfg.SEMI.BURN_IN >= o.MAX_ITER:
        log.warning("SEMI.BURN_IN %d >= SOLVER.MAX_ITER %d: no unlabelled image is used", cfg.SEMI.BURN_IN, o.MAX_ITER)
    optimizer = build_optimizer(
        method.student,
        o.OPTIMIZER,
        lr=o.BASE_LR,
        momentum=o.MOMENTUM,
        weight_decay=o.WEIGHT_DECAY,
        weight_decay_norm=o.WEIGHT_DECAY_NORM,
        backbone_multiplier=o.BACKBONE_MULTIPLIER,
    )
    factor = lr_factor(
        o.LR_SCHEDULER_NAME,
        max_iter=o.MAX_ITER,
        steps=o.STEPS,
        gamma=o.GAMMA,
        warmup_iters=o.WARMUP_ITERS,
        warmup_factor=o.WARMUP_FACTOR,
    )
    labeled, unlabeled = open_streams(cfg, data, method.student.size_divisibility)
    clip = o.CLIP_GRADIENTS
    return Trainer(
        method,
        optimizer,
        LearningRate.of(optimizer, factor),
        labeled,
        unlabeled,
        build_evaluator(cfg, data.tests[0], device) if data.tests else None,
        LoopOptions(
            max_iter=o.MAX_ITER,
            accumulate=o.ACCUMULATE,
            checkpoint_period=o.CHECKPOINT_PERIOD,
            checkpoints_kept=o.CHECKPOINTS_KEPT,
            eval_period=cfg.TEST.EVAL_PERIOD,
            collapse_steps=cfg.SEMI.COLLAPSE_STEPS,
        ),
        Precision(o.AMP.ENABLED, o.AMP.DTYPE, device),
        Clip(clip.CLIP_TYPE, clip.CLIP_VALUE) if clip.ENABLED else Clip(),
        folder,
        device,
    )
