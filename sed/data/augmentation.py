"""Resize and flip of the weak view, and the strong view (docs/method.md 2), on uint8 RGB images [H, W, 3] by OpenCV.

Written for speed (docs/benchmarks.md): colour jitter and greyscale are one 3 x 4 matrix (`cv2.transform`), the blur
kernel is no longer than sigma needs, cutout noise is cut from a pool, and all steps are in uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114])  # of R, G, B
_GREY = np.tile(_LUMA, (3, 1))  # [3, 3]
_FILL = (124, 116, 104)  # constant cutout: the mean of ImageNet's pixels
_CUTOUTS = (  # probability, area fraction, aspect ratio (height / width)
    (0.7, (0.05, 0.2), (0.3, 3.3)),
    (0.5, (0.02, 0.2), (0.1, 6.0)),
    (0.3, (0.02, 0.2), (0.05, 8.0)),
)


def target_size(height: int, width: int, short: int, max_size: int) -> tuple[int, int]:
    """(height, width) with the shorter side `short`, unless the longer one would then exceed `max_size`."""
    scale = min(short / min(height, width), max_size / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_shortest(image: np.ndarray, short: int, max_size: int) -> np.ndarray:
    """Resize as `target_size` says: INTER_AREA to shrink (INTER_LINEAR would alias), else INTER_LINEAR."""
    height, width = image.shape[:2]
    new_height, new_width = target_size(height, width, short, max_size)
    if (new_height, new_width) == (height, width):
        return image
    method = cv2.INTER_AREA if new_height < height else cv2.INTER_LINEAR
    return cv2.resize(image, (new_width, new_height), interpolation=method)


def flip(image: np.ndarray) -> np.ndarray:
    """The image mirrored left to right."""
    return cv2.flip(image, 1)


@dataclass(frozen=True)
class StrongAugmentation:
    """Makes the strong view of a weak one: colour jitter, greyscale, blur and three cutouts (docs/method.md 2).

    The geometry does not change, so that the boxes of the weak view are those of the strong one.

    Attributes:
        fill: of a cutout: "random", noise per pixel, or "constant", one colour.
    """

    fill: Literal["random", "constant"] = "random"

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The strong view of `image` [H, W, 3] uint8; a new array, `image` is not changed."""
        out = image
        matrix = colour_matrix(rng, lambda: np.array(cv2.mean(image)[:3]))
        if matrix is not None:
            out = cv2.transform(out, matrix)
        if rng.random() < 0.5:
            out = blur(out, float(rng.uniform(0.1, 2.0)))
        if out is image:
            out = image.copy()
        for probability, area, ratio in _CUTOUTS:
            if rng.random() < probability:
                self._cut_out(out, rng, area, ratio)
        return out

    def _cut_out(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        area: tuple[float, float],
        ratio: tuple[float, float],
    ) -> None:
        """Fill one random rectangle, in place; none if ten drawn ones do not fit into the image."""
        height, width = image.shape[:2]
        for _ in range(10):
            pixels = height * width * rng.uniform(*area)
            aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
            h, w = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < h < height and 0 < w < width:
                y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                image[y : y + h, x : x + w] = _noise(rng, h, w) if self.fill == "random" else _FILL
                return


def colour_matrix(rng: np.random.Generator, mean: Callable[[], np.ndarray]) -> np.ndarray | None:
    """Colour jitter (p = 0.8) and greyscale (p = 0.2) as one affine map of the pixels, [3, 4], or None.

    Brightness b x, saturation s x + (1 - s) grey(x) and contrast c x + (1 - c) mean(grey) are affine maps,
    applied in random order with factors U(0.6, 1.4). Deviation from applying one operation after the other: values are
    rounded and clipped to 0..255 once, at the end, so that what one factor pushes beyond 255 the next may bring back.

    Args:
        rng: the sample's generator.
        mean: function that returns the image's mean colour [3]; called only if jitter is drawn.
    """
    jitter = rng.random() < 0.8
    matrix, shift = np.eye(3), np.zeros(3)
    if jitter:
        brightness, contrast, saturation = rng.uniform(0.6, 1.4, 3)
        mean_colour = mean()
        for op in rng.permutation(3):
            if op == 0:
                matrix, shift = brightness * matrix, brightness * shift
            elif op == 1:
                level = _LUMA @ (matrix @ mean_colour + shift)  # mean grey of the image as it is by now
                matrix, shift = contrast * matrix, contrast * shift + (1 - contrast) * level
            else:
                mix = saturation * np.eye(3) + (1 - saturation) * _GREY
                matrix, shift = mix @ matrix, mix @ shift
    grey = rng.random() < 0.2
    if grey:
        matrix, shift = _GREY @ matrix, _GREY @ shift
    return np.column_stack([matrix, shift]) if jitter or grey else None


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with a kernel of at most 23 pixels; its ends beyond 4 sigma, which are 0, are left out."""
    side = min(23, 2 * math.ceil(4 * sigma) + 1)
    return cv2.GaussianBlur(image, (side, side), sigma)


@lru_cache(maxsize=1)
def _pool() -> np.ndarray:
    """4 MiB of uniform noise; the same in every process."""
    return np.random.default_rng(20220614).integers(0, 256, 1 << 22, dtype=np.uint8)


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """[height, width, 3] uint8 noise, cut from the pool at a random place (repeated if too short)."""
    pool, length = _pool(), height * width * 3
    start = int(rng.integers(pool.size))
    if start + length <= pool.size:
        return pool[start : start + length].reshape(height, width, 3)
    return np.resize(np.concatenate([pool[start:], pool[:start]]), length).reshape(height, width, 3)
