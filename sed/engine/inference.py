"""What the entry scripts ask of the native engine: trained detectors, data and training views."""

from __future__ import annotations

from collections.abc import Iterator

from fvcore.common.config import CfgNode

from sed.core.structures import LabeledBatch
from sed.data.catalog import load_datasets
from sed.data.mapper import Mapper
from sed.data.records import Dataset
from sed.detectors.base import Detector
from sed.engine import build
from sed.evaluation.pictures import Painter, paint_boxes
from sed.runtime.output import trained_weights


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


def test_mapper(cfg: CfgNode) -> Mapper:
    """What reads and resizes test images."""
    size = cfg.INPUT.MIN_SIZE_TEST
    return Mapper((size, size), cfg.INPUT.MAX_SIZE_TEST, flip=False)


test_mapper.__test__ = False  # type: ignore[attr-defined]  # not a pytest function


def train_set(cfg: CfgNode) -> Dataset:
    """DATASETS.TRAIN as it is annotated."""
    return load_datasets(cfg.DATASETS.TRAIN, cfg.DATASETS.IMAGE_ROOT)


def view_streams(cfg: CfgNode) -> tuple[Dataset, Iterator[LabeledBatch], Iterator[LabeledBatch]]:
    """The labelled stream of a training run twice, without and with strong views: both have the same geometry.

    Returns:
        The labelled set; endless batches of weak views; the same batches, every second image as its strong view. Sides
        are padded so that all half sizes of SED.MAX_SCALE fit.
    """
    cfg = cfg.clone()
    cfg.SEMI.METHOD, cfg.DATASETS.TEST = "supervised", ()  # no other data is needed
    data = build.build_data(cfg)
    streams = []
    for choice in (False, True):
        cfg.SEMI.STRONG_LABELED = choice
        streams.append(build.build_streams(cfg, data, 2**cfg.SED.MAX_SCALE)[0])
    return data.labeled, *streams


def painter(dataset: Dataset) -> Painter:
    """What draws the boxes of `dataset`: OpenCV."""
    return paint_boxes
