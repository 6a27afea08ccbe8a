"""Trained detectors of the native engine, and the data that are drawn and predicted: all without training."""

from __future__ import annotations

from collections.abc import Iterator

from fvcore.common.config import CfgNode

from sed.core.structures import LabeledBatch
from sed.data.catalog import load_datasets
from sed.data.records import Dataset
from sed.detectors.base import Detector
from sed.engine import build
from sed.evaluation.pictures import Painter, paint_boxes
from sed.runtime import data
from sed.runtime.results import trained_weights


def load_detector(cfg: CfgNode, weights: str, which: str = "teacher") -> Detector:
    """The config's detector with trained weights, in eval mode, on MODEL.DEVICE.

    Args:
        cfg: MODEL and TEST are read.
        weights: as `build.trained_detector` (of a full checkpoint the teacher); "" is OUTPUT_DIR's model_best.pth, or
            model_final.pth where there is no best one.
        which: "teacher" or "student" of a full checkpoint.

    Raises:
        CheckpointError: no such file, or one that does not fit.
        DataError: "" where OUTPUT_DIR holds neither.
    """
    device = build.resolve_device(cfg.MODEL.DEVICE)
    return build.trained_detector(cfg, weights or trained_weights(cfg.OUTPUT_DIR), which).to(device).eval()


def train_set(cfg: CfgNode) -> Dataset:
    """All of DATASETS.TRAIN with its annotations, before any split."""
    return load_datasets(cfg.DATASETS.TRAIN, cfg.DATASETS.IMAGE_ROOT)


def view_streams(cfg: CfgNode) -> tuple[Dataset, Iterator[LabeledBatch], Iterator[LabeledBatch]]:
    """The labelled set and its training batches without and with strong views, see `sed.runtime.data.view_streams`."""
    return data.view_streams(cfg, build.read_data, build.open_streams)


def painter(dataset: Dataset) -> Painter:
    """What draws the boxes of `dataset`: OpenCV."""
    return paint_boxes
