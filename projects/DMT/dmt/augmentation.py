"""What happens to an image for segmentation between its file and the network, and to logits on the way back.

Images for classification: `dmt.classification_augmentation`; all four transforms can be imported from here.

The order is the authors': resize all, random scale, zero padding and random crop, flip, normalisation. So padding is
black before it is normalised. Images are resized bilinearly without antialiasing, as the authors' are; labels and
confidences by the nearest pixel, the same one for both.

Shape shorthand: H and W of an image's file, h and w of what the network sees, C classes. Sizes are (height, width).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dmt.loss import IGNORED
from dmt.normalization import check_normalization, normalise
from sed.data.errors import DataError

Size = tuple[int, int]


@dataclass(frozen=True)
class SegmentationTrain:
    """A random crop of a randomly scaled, perhaps flipped image.

    Attributes:
        crop: size of the result; a smaller image is padded at the bottom and on the right: black, label 255, code 0.
        scale: both sides are multiplied by s ~ U(scale) (DMT).
        sides: ((least, most height), (least, most width)): both are drawn apart and `scale` is not used (DST-CBC).
        resize: every image is brought to this size first (Cityscapes); None: its own.
        flip: probability of a horizontal flip.
        normalization: one of `dmt.normalization.NORMALIZATIONS`.
    """

    crop: Size
    scale: tuple[float, float] = (0.5, 1.5)
    sides: tuple[Size, Size] | None = None
    resize: Size | None = None
    flip: float = 0.5
    normalization: str = "imagenet"

    def __post_init__(self) -> None:
        check_normalization(self.normalization)
        if min(self.crop) < 1 or not 0 < self.scale[0] <= self.scale[1] or not 0 <= self.flip <= 1:
            raise ValueError(
                f"crop {self.crop} must be positive, scale {self.scale} rise, flip {self.flip} be in [0, 1]"
            )
        if self.sides and any(not 0 < low <= high for low, high in self.sides):
            raise ValueError(f"sides {self.sides} must be ((least, most height), (least, most width))")

    def __call__(
        self, image: np.ndarray, labels: np.ndarray, codes: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Augment one image; the same generator gives the same result.

        Args:
            image: [H, W, 3] uint8, RGB.
            labels: [H, W] uint8, 255 ignored.
            codes: [H, W] uint16, confidences (`dmt.curriculum`).
            rng: the only source of chance.

        Returns:
            Image [3, h, w] float32, labels [h, w] int64, codes [h, w] int32 in 0..65535.

        Raises:
            DataError: for labels or codes of another size than the image's.
        """
        if not image.shape[:2] == labels.shape == codes.shape:
            raise DataError(
                f"an image of {image.shape[:2]} pixels with labels of {labels.shape} and codes of {codes.shape}: "
                "all three must have one size"
            )
        size = self._draw_size(self.resize or image.shape[:2], rng)
        if self.resize and self.resize != image.shape[:2]:  # twice, as the authors do: not the same pixels as once
            image, labels, codes = (_resize(array, self.resize) for array in (image, labels, codes))
        image, labels, codes = (_resize(array, size) for array in (image, labels, codes))
        window = []
        for length, wanted in zip(size, self.crop, strict=True):
            start = int(rng.integers(0, max(length - wanted, 0) + 1))
            window.append(slice(start, start + wanted))
        image, labels, codes = (array[tuple(window)] for array in (image, labels, codes))
        image = _pad(image, self.crop, 0)
        labels, codes = _pad(labels, self.crop, IGNORED), _pad(codes, self.crop, 0)
        if rng.random() < self.flip:
            image, labels, codes = image[:, ::-1], labels[:, ::-1], codes[:, ::-1]
        return (
            normalise(image, self.normalization),
            torch.from_numpy(labels.astype(np.int64, order="C")),
            torch.from_numpy(codes.astype(np.int32, order="C")),
        )

    def _draw_size(self, size: Size, rng: np.random.Generator) -> Size:
        if self.sides:
            (low_h, high_h), (low_w, high_w) = self.sides
            return int(rng.integers(low_h, high_h + 1)), int(rng.integers(low_w, high_w + 1))
        factor = rng.uniform(*self.scale)
        return max(int(factor * size[0]), 1), max(int(factor * size[1]), 1)


@dataclass(frozen=True)
class SegmentationTest:
    """An image as a whole.

    Attributes:
        pad: zeros at the bottom and on the right up to this size; a larger image stays as it is (VOC: 505 x 505).
        resize: every image is brought to this size first (Cityscapes: 512 x 1024).
        normalization: one of `dmt.normalization.NORMALIZATIONS`.
    """

    pad: Size | None = None
    resize: Size | None = None
    normalization: str = "imagenet"

    def __post_init__(self) -> None:
        check_normalization(self.normalization)

    def __call__(self, image: np.ndarray) -> Tensor:
        """Pixels [H, W, 3] uint8 RGB -> [3, h, w] float32."""
        if self.resize:
            image = _resize(image, self.resize)
        if self.pad:
            image = _pad(image, self.pad, 0)
        return normalise(image, self.normalization)

    def restore(self, logits: Tensor, size: Size) -> Tensor:
        """Logits [C, h, w] -> [C, H, W] for a file of (H, W) = `size`: the padding cut off, bilinear where resized."""
        height, width = self.resize or size
        logits = logits[:, :height, :width]
        if tuple(logits.shape[1:]) == tuple(size):
            return logits
        return F.interpolate(logits[None], size=tuple(size), mode="bilinear", align_corners=True)[0]


def _resize(array: np.ndarray, size: Size) -> np.ndarray:
    """To (height, width): pixels [H, W, 3] bilinearly, labels and codes [H, W] by the pixel under each centre."""
    if array.shape[:2] == tuple(size):
        return array
    if array.ndim == 3:
        return cv2.resize(array, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    rows, columns = ((2 * np.arange(n) + 1) * old // (2 * n) for n, old in zip(size, array.shape, strict=True))
    return array.take(rows, axis=0).take(columns, axis=1)  # cv2's INTER_NEAREST is half a pixel off its INTER_LINEAR


def _pad(array: np.ndarray, size: Size, value: int) -> np.ndarray:
    """`array` with `value` at the bottom and on the right, at least (height, width) = `size`."""
    missing = [max(wanted - length, 0) for length, wanted in zip(array.shape, size, strict=False)]
    if not any(missing):
        return array
    return np.pad(array, [(0, n) for n in missing] + [(0, 0)] * (array.ndim - 2), constant_values=value)
