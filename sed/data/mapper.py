"""Reads the image of a record and makes the weak and the strong view, with its boxes.

A sample depends only on the record and (seed, stream, position), not on the number of workers or on samples before it:
its generator is `np.random.default_rng([seed, stream, position])`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from sed.core.structures import Size, Targets
from sed.data.augmentation import StrongAugmentation, flip, resize_shortest
from sed.data.geometry import GeometricAugmentation
from sed.data.images import read_image
from sed.data.records import Record

LABELED, UNLABELED = 0, 1  # stream ids


class ImageInfo(NamedTuple):
    """Id, scale and size of a test image, to convert its detections to the file's pixels.

    Attributes:
        image_id: of the record.
        scale: (x, y) factors from the file's pixels to those of the tensor.
        size: (height, width) of the file.
    """

    image_id: int | str
    scale: tuple[float, float]
    size: Size


@dataclass(frozen=True)
class Mapper:
    """Turns records into samples.

    Attributes:
        min_size: range of the short side in pixels, both ends included; `test` takes the first.
        max_size: limit of the long side.
        flip: whether to mirror with probability 0.5.
        strong: makes the strong view.
        strong_labeled: whether every second labelled sample gets the strong view instead of the weak one.
        geometric: transforms the weak view, before the strong one is made from it; None: no geometric augmentation.
        seed: of the run.
    """

    min_size: tuple[int, int]
    max_size: int
    flip: bool = True
    strong: StrongAugmentation = field(default_factory=StrongAugmentation)
    strong_labeled: bool = False
    geometric: GeometricAugmentation | None = None
    seed: int = 0

    def labeled(self, record: Record, position: int) -> tuple[Tensor, Targets]:
        """The weak view [3, h, w] uint8 and its boxes; at odd positions, with `strong_labeled`, the strong view."""
        rng = np.random.default_rng([self.seed, LABELED, position])
        image, flipped = self._weak(record, rng)
        targets = _targets(record, image.shape[:2], flipped)
        if self.geometric:
            image, targets = self.geometric.labeled(image, targets, LABELED, position)
        if self.strong_labeled and position % 2:
            image = self.strong(image, rng)
        return to_tensor(image), targets

    def unlabeled(self, record: Record, position: int) -> tuple[Tensor, Tensor]:
        """The weak and the strong view of a record, both [3, h, w] uint8, with the same geometry."""
        rng = np.random.default_rng([self.seed, UNLABELED, position])
        weak, _ = self._weak(record, rng)
        if self.geometric:
            weak = self.geometric.unlabeled(weak, UNLABELED, position)
        return to_tensor(weak), to_tensor(self.strong(weak, rng))

    def test(self, record: Record) -> tuple[Tensor, ImageInfo]:
        """The resized image [3, h, w] uint8, without random augmentation."""
        image = resize_shortest(read_image(record), self.min_size[0], self.max_size)
        height, width = record["height"], record["width"]
        scale = (image.shape[1] / width, image.shape[0] / height)
        return to_tensor(image), ImageInfo(record["image_id"], scale, (height, width))

    def _weak(self, record: Record, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        short = int(rng.integers(self.min_size[0], self.min_size[1] + 1))
        flipped = bool(rng.random() < 0.5) and self.flip
        image = read_image(record)
        if flipped:  # before the resize, which mostly enlarges: less to move
            image = flip(image)
        return resize_shortest(image, short, self.max_size), flipped


def _targets(record: Record, size: Size, flipped: bool) -> Targets:
    """Boxes of the resized image, flipped and clipped with it; crowds are left out."""
    items = [a for a in record["annotations"] if not a["iscrowd"]]
    boxes = np.array([a["bbox"] for a in items], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    height, width = size
    boxes *= np.array([width / record["width"], height / record["height"]] * 2)
    if flipped:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    boxes = np.clip(boxes, 0, [width, height] * 2).astype(np.float32)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    classes = np.array([a["category_id"] for a in items], np.int64)
    return Targets(torch.from_numpy(boxes[keep]), torch.from_numpy(classes[keep]))


def to_tensor(image: np.ndarray) -> Tensor:
    """[h, w, 3] -> [3, h, w]; OpenCV's split is several times faster than a permuted copy."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    return torch.from_numpy(planes)
