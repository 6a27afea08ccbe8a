"""What a set of images is: pixels and labels by index, in files or in memory, read one image at a time.

Shape shorthand: H and W of an image's file, N images, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from dmt.loss import IGNORED
from sed.data.errors import DataError


class ImageSet(Protocol):
    """Images and what is known of them, by index.

    Attributes:
        name: of the set and its part, as messages have it.
        classes: names of the C classes.
        keys: each image's own name; safe as the name of a file.
    """

    name: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        """N."""

    def image(self, index: int) -> np.ndarray:
        """Pixels [H, W, 3] uint8, RGB."""

    def target(self, index: int) -> np.ndarray | int:
        """Segmentation: labels [H, W] uint8 in 0..C-1, or 255: ignored. Classification: the class."""


@dataclass(frozen=True)
class Sets:
    """A set's parts.

    Attributes:
        task: "segmentation" or "classification".
        train: what is divided into labelled and unlabelled images.
        test: what results are reported on.
        labeled: indices of the labelled images where the protocol says which; else None.
        tune: labelled images apart from both, to choose steps and settings with; None: the set has none.
    """

    task: str
    train: ImageSet
    test: ImageSet
    labeled: tuple[int, ...] | None = None
    tune: ImageSet | None = None


@dataclass(frozen=True)
class ImageFiles:
    """Images and masks in files; see `ImageSet`. `read_mask`: a mask's path -> labels [H, W] uint8."""

    name: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    images: tuple[str, ...]
    masks: tuple[str, ...]
    read_mask: Callable[[str], np.ndarray]

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> np.ndarray:
        """Pixels [H, W, 3] uint8, RGB; DataError for a file that cannot be read."""
        try:
            with Image.open(self.images[index]) as picture:
                return np.array(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(self.images[index], self.name, error) from None

    def target(self, index: int) -> np.ndarray:
        """Labels [H, W] uint8; DataError for a mask that cannot be read, or does not fit its image or the classes."""
        path = self.masks[index]
        try:
            labels = self.read_mask(path)
            with Image.open(self.images[index]) as picture:  # reads the header only
                width, height = picture.size
        except Exception as error:  # SciPy lets through whatever it stumbles over in a broken .mat
            raise _unreadable(path, self.name, error) from None
        if labels.shape != (height, width) or labels.dtype != np.uint8:
            raise DataError(
                f"{path}: {self.name} expects one label a pixel, {height} x {width} uint8 as {self.images[index]} is; "
                f"found {' x '.join(map(str, labels.shape))} {labels.dtype}. A mask is a grey or palette PNG: one that "
                "was saved as RGB must be unpacked anew"
            )
        if (wrong := (labels >= len(self.classes)) & (labels != IGNORED)).any():
            raise DataError(
                f"{path}: label {labels[wrong][0]} is none of the {len(self.classes)} classes of {self.name} nor "
                f"{IGNORED} (ignored); unpack the file anew"
            )
        return labels


@dataclass(frozen=True)
class ImageArray:
    """Small images in memory, [N, H, W, 3] uint8, and their classes [N]; see `ImageSet`."""

    name: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    pixels: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> np.ndarray:
        """Pixels [H, W, 3] uint8, RGB."""
        return self.pixels[index].copy()

    def target(self, index: int) -> int:
        """The class."""
        return int(self.targets[index])


def image_files(
    name: str,
    classes: tuple[str, ...],
    keys: Sequence[str],
    images: Sequence[str],
    masks: Sequence[str],
    read_mask: Callable[[str], np.ndarray],
) -> ImageFiles:
    """An ImageFiles whose files are all there: each folder is listed once, no file is opened.

    Raises:
        DataError: for files that are missing.
    """
    listed: dict[str, set[str]] = {}
    for kind, paths in (("image", images), ("mask", masks)):
        missing = []
        for path in paths:
            folder, file = os.path.split(path)
            if folder not in listed:
                listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            if file not in listed[folder]:
                missing.append(path)
        if missing:
            raise DataError(
                f"{name}: {len(missing)} of {len(paths)} {kind} files are missing, the first is {missing[0]}; unpack "
                "the archive anew"
            )
    return ImageFiles(name, classes, tuple(keys), tuple(images), tuple(masks), read_mask)


def stem(path: str) -> str:
    """The name of a file without its folder and suffix."""
    return Path(path).stem


def read_png(path: str) -> np.ndarray:
    """A grey PNG's levels, a palette PNG's indices [H, W] uint8."""
    with Image.open(path) as mask:
        return np.array(mask)


def _unreadable(path: str, name: str, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as a part of {name} ({error or type(error).__name__}); unpack it anew")
