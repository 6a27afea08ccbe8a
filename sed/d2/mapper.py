"""Weak and strong views around a Detectron2 mapper, whose reading, resizing, flipping, cropping make the weak one.

Detectron2's augmentations draw from the global random generators. They are seeded here from (seed, stream, position)
around the call and put back after it, so that a sample depends on nothing else, as with `sed.data.mapper`.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import Instances
from torch import Tensor

from sed.core.structures import Targets
from sed.data.augmentation import StrongAugmentation
from sed.data.errors import DataError
from sed.data.geometry import GeometricAugmentation
from sed.data.images import check_file, read_image
from sed.data.mapper import LABELED, UNLABELED, to_tensor
from sed.data.records import Record

CHANNELS = {"RGB": slice(None), "BGR": [2, 1, 0]}  # INPUT.FORMAT -> the mapper's channels in the order of RGB


class ImageMapper(DatasetMapper):
    """Detectron2's mapper for training, with the pixels of `sed.data.images`: the frame that has the record's size."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The record with its "image" and "instances".

        Raises:
            DataError: for an image that cannot be used.
        """
        sample = copy.deepcopy(dataset_dict)
        given = T.AugInput(np.ascontiguousarray(read_image(sample)[:, :, CHANNELS[self.image_format]]))
        transforms = self.augmentations(given)
        sample["image"] = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        self._transform_annotations(sample, transforms, given.image.shape[:2])
        return sample


@dataclass(frozen=True)
class ViewMapper:
    """Turns records into samples, shaped as those of `sed.data.mapper.Mapper`.

    Attributes:
        mapper: dataset dict -> dict with "image" [3, h, w] uint8 and, of a labelled one, "instances", such as
            `detectron2.data.DatasetMapper`. Whatever it draws from the global generators is reproducible.
        image_format: "RGB" or "BGR", what `mapper` returns.
        strong: the strong view.
        strong_labeled: every second labelled sample also gets the strong view.
        geometric: turns the weak view before the strong one is made of it; None: nothing does.
        seed: of the run.
    """

    mapper: Callable[[dict[str, Any]], dict[str, Any]]
    image_format: str = "BGR"
    strong: StrongAugmentation = field(default_factory=StrongAugmentation)
    strong_labeled: bool = False
    geometric: GeometricAugmentation | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_format not in CHANNELS:
            raise ValueError(f"image_format is {self.image_format!r}; it must be one of {', '.join(CHANNELS)}")

    def labeled(self, record: Record, position: int) -> tuple[Tensor, Targets]:
        """The weak (every second one: strong) view [3, h, w] uint8 RGB of a record and its boxes.

        Raises:
            DataError: for an image that cannot be used.
        """
        image, sample = self._weak(record, LABELED, position)
        targets = _targets(sample, record)
        if self.geometric:
            image, targets = self.geometric.labeled(image, targets, LABELED, position)
        if self.strong_labeled and position % 2:
            image = self._strong(image, LABELED, position)
        return to_tensor(image), targets

    def unlabeled(self, record: Record, position: int) -> tuple[Tensor, Tensor]:
        """The weak and the strong view of a record, both [3, h, w] uint8 RGB of one geometry.

        Raises:
            DataError: for an image that cannot be used.
        """
        weak, _ = self._weak({**record, "annotations": []}, UNLABELED, position)  # mappers may expect the key
        if self.geometric:
            weak = self.geometric.unlabeled(weak, UNLABELED, position)
        return to_tensor(weak), to_tensor(self._strong(weak, UNLABELED, position))

    def _weak(self, record: Record, stream: int, position: int) -> tuple[np.ndarray, dict[str, Any]]:
        """What the mapper makes of a record: pixels [h, w, 3] uint8 RGB, and all of it."""
        path = record["file_name"]
        if not isinstance(self.mapper, ImageMapper):
            check_file(path)  # a mapper that reads with OpenCV would not notice the end missing
        try:
            with drawing_from(self.seed, stream, position):
                sample = self.mapper(dict(record))
        except SizeMismatchError as error:
            raise DataError(f"{path}: {error}") from error
        except (OSError, SyntaxError) as error:  # Pillow's PNG reader reports a broken chunk as SyntaxError
            raise DataError(f"{path}: not a readable image ({error}); repair or remove it") from error
        image = sample.get("image") if isinstance(sample, dict) else None
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3 or len(image) != 3:
            found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else f"{type(image).__name__}"
            raise TypeError(f'{path}: a mapper must return an "image" [3, h, w] of torch.uint8, got {found}')
        pixels = image.permute(1, 2, 0).numpy()[:, :, CHANNELS[self.image_format]]
        return np.ascontiguousarray(pixels), sample

    def _strong(self, image: np.ndarray, stream: int, position: int) -> np.ndarray:
        return self.strong(image, np.random.default_rng([self.seed, stream, position]))


@contextlib.contextmanager
def drawing_from(seed: int, stream: int, position: int) -> Iterator[None]:
    """Inside, the global generators of random, NumPy and torch (CPU) follow from the arguments; then as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (mappers draw from it)
    words = np.random.SeedSequence([seed, stream, position]).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002
    torch.default_generator.manual_seed(words[2])  # torch.manual_seed would touch the GPU's generator too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _targets(sample: dict[str, Any], record: Record) -> Targets:
    instances = sample.get("instances")
    if not isinstance(instances, Instances) or not instances.has("gt_boxes") or not instances.has("gt_classes"):
        raise TypeError(
            f"{record['file_name']}: the mapper of labelled images returned no boxes; is it one for training?"
        )
    boxes = instances.gt_boxes.tensor  # [G, 4]
    return Targets(boxes.float().reshape(-1, 4), instances.gt_classes.long())
