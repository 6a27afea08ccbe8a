"""Trained detectors on Detectron2, and the data that are drawn and predicted: all without training.

Images are read and resized as Detectron2's `DefaultPredictor` does it, so that detections are the same; pictures are
drawn by its `Visualizer` with the names and colours of its `MetadataCatalog`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import detectron2.data.transforms as T
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

from sed.core.structures import LabeledBatch
from sed.d2.catalog import datasets_of
from sed.d2.checkpoint import load_weights
from sed.d2.data import build_test_sets, open_streams, read_data
from sed.data.images import read_image
from sed.data.mapper import ImageInfo, to_tensor
from sed.data.records import Dataset, Record, join
from sed.detectors.base import Detector
from sed.evaluation.pictures import Painter
from sed.evaluation.visualize import PALETTE
from sed.runtime import data
from sed.runtime.results import trained_weights


def load_detector(cfg: CfgNode, weights: str, which: str = "teacher") -> Detector:
    """The config's detector with trained weights, in eval mode, on MODEL.DEVICE.

    Args:
        cfg: from `load_config`.
        weights: a Detectron2 file (local, or an address such as detectron2://...), an exported one, or a full
            checkpoint; "" is OUTPUT_DIR's model_best.pth, or model_final.pth where there is no best one.
        which: "teacher" or "student" of a full checkpoint.

    Raises:
        CheckpointError: a file that cannot be read.
        DataError: "" where OUTPUT_DIR holds neither.
        WeightsError: a file that cannot be had, or does not fit.
    """
    weights = weights or trained_weights(cfg.OUTPUT_DIR)
    detector = build_model(cfg)
    load_weights(detector, weights, cfg, which)
    return detector.eval()


@dataclass(frozen=True)
class Resizer:
    """Reads test images and resizes them by Detectron2's own augmentation; see `sed.evaluation.files.TestMapper`."""

    resize: T.ResizeShortestEdge

    def test(self, record: Record) -> tuple[Tensor, ImageInfo]:
        """The resized image [3, h, w] uint8 RGB, nothing drawn at random.

        Raises:
            DataError: as `sed.data.images.read_image`.
        """
        image = read_image(record)
        size = (record["height"], record["width"])
        image = self.resize.get_transform(image).apply_image(image)
        scale = (image.shape[1] / size[1], image.shape[0] / size[0])
        return to_tensor(image), ImageInfo(record["image_id"], scale, size)


def test_mapper(cfg: CfgNode) -> Resizer:
    """What reads and resizes test images."""
    size = cfg.INPUT.MIN_SIZE_TEST
    return Resizer(T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST))


test_mapper.__test__ = False  # type: ignore[attr-defined]  # not a pytest function


def train_set(cfg: CfgNode) -> Dataset:
    """All of DATASETS.TRAIN with its annotations, before any split."""
    return datasets_of(cfg.DATASETS.TRAIN, cfg.DATASETS.IMAGE_ROOT)


def test_set(cfg: CfgNode) -> Dataset:
    """DATASETS.TEST with its annotations; its number of classes is checked against the config."""
    return join(build_test_sets(cfg))


test_set.__test__ = False  # type: ignore[attr-defined]  # not a pytest function


def test_classes(cfg: CfgNode) -> Dataset:
    """Names and category ids of DATASETS.TEST; where Detectron2's metadata have them, nothing is read from disk."""
    name = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(name) if name in MetadataCatalog else None
    ids = metadata.get("thing_dataset_id_to_contiguous_id") if metadata else None
    if not ids or not metadata.get("thing_classes"):
        return test_set(cfg)
    return Dataset(name, [], tuple(metadata.thing_classes), tuple(sorted(ids, key=ids.get)))


test_classes.__test__ = False  # type: ignore[attr-defined]  # not a pytest function


def view_streams(cfg: CfgNode) -> tuple[Dataset, Iterator[LabeledBatch], Iterator[LabeledBatch]]:
    """The labelled set and its training batches without and with strong views, see `sed.runtime.data.view_streams`."""
    return data.view_streams(cfg, read_data, open_streams)


def painter(dataset: Dataset) -> Painter:
    """What draws the boxes of `dataset`: Detectron2's `Visualizer`.

    Labels read as Detectron2's own, and colours are the set's `thing_colors`; where it has none a fixed palette takes
    the place of Detectron2's random colours, so that a class looks the same in every picture.
    """
    metadata = MetadataCatalog.get(dataset.name)
    palette = metadata.get("thing_colors") or PALETTE

    def paint(
        image: np.ndarray,
        corners: np.ndarray,
        categories: Sequence[int],
        scores: Sequence[float],
        classes: Sequence[str],
    ) -> np.ndarray:
        labels = [classes[c] for c in categories]
        if len(scores):
            labels = [f"{label} {score:.0%}" for label, score in zip(labels, scores, strict=True)]
        colors = [tuple(v / 255 for v in palette[c % len(palette)]) for c in categories]
        drawn = Visualizer(image, metadata).overlay_instances(boxes=corners, labels=labels, assigned_colors=colors)
        return np.ascontiguousarray(drawn.get_image())

    return paint
