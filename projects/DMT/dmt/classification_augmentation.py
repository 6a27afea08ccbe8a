"""What happens to a small image for classification: padded crop, flip, and one of sixteen operations.

The operations are those of the RandAugment that DMT builds on, with its ranges: an operation and a strength
m ~ U{1..10} are drawn, the operation's value is least + (most - least) m / 10. Rotation, shear and translation go
either way. Cutout is one of the sixteen, not an addition to them.

"authors": the pixel ranges as they are, made for images of ImageNet's size: translation by up to 100 pixels leaves
nothing of a small image. "scaled": the same share of the side as of one of 224 pixels.

Shape shorthand: H and W, an image's sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from dmt.normalization import check_normalization, normalise

Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]
FILL = 128  # around an image that is cropped
CUTOUT_COLOUR = (125, 123, 114)  # the mean of ImageNet, as in the library that the authors use
REFERENCE_SIDE = 224  # of the images that the pixel ranges were made for
IN_PIXELS = ("cutout", "translate_x", "translate_y")


def _either_way(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)  # nearest pixel, black outside


def _solarize_add(image: Image.Image, value: float, rng: np.random.Generator) -> Image.Image:
    brighter = np.clip(np.asarray(image).astype(np.int16) + int(value), 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), 128)


def _cutout(image: Image.Image, value: float, rng: np.random.Generator) -> Image.Image:
    """A square of about `value` pixels a side around a random point, cut at the image's border."""
    starts = [max(int(rng.uniform(0, length) - value / 2), 0) for length in image.size]
    ends = [min(int(start + value), length - 1) for start, length in zip(starts, image.size, strict=True)]
    out = image.copy()
    out.paste(CUTOUT_COLOUR, (*starts, ends[0] + 1, ends[1] + 1))
    return out


# name -> (operation, least, most)
OPERATIONS: dict[str, tuple[Operation, float, float]] = {
    "auto_contrast": (lambda image, value, rng: ImageOps.autocontrast(image), 0, 1),
    "equalize": (lambda image, value, rng: ImageOps.equalize(image), 0, 1),
    "invert": (lambda image, value, rng: ImageOps.invert(image), 0, 1),
    "rotate": (lambda image, value, rng: image.rotate(_either_way(value, rng)), 0, 30),
    "posterize": (lambda image, value, rng: ImageOps.posterize(image, max(int(value), 1)), 0, 4),
    "solarize": (lambda image, value, rng: ImageOps.solarize(image, value), 0, 256),
    "solarize_add": (_solarize_add, 0, 110),
    "color": (lambda image, value, rng: ImageEnhance.Color(image).enhance(value), 0.1, 1.9),
    "contrast": (lambda image, value, rng: ImageEnhance.Contrast(image).enhance(value), 0.1, 1.9),
    "brightness": (lambda image, value, rng: ImageEnhance.Brightness(image).enhance(value), 0.1, 1.9),
    "sharpness": (lambda image, value, rng: ImageEnhance.Sharpness(image).enhance(value), 0.1, 1.9),
    "shear_x": (lambda image, value, rng: _affine(image, 1, _either_way(value, rng), 0, 0, 1, 0), 0, 0.3),
    "shear_y": (lambda image, value, rng: _affine(image, 1, 0, 0, _either_way(value, rng), 1, 0), 0, 0.3),
    "cutout": (_cutout, 0, 40),
    "translate_x": (lambda image, value, rng: _affine(image, 1, 0, _either_way(value, rng), 0, 1, 0), 0, 100),
    "translate_y": (lambda image, value, rng: _affine(image, 1, 0, 0, 0, 1, _either_way(value, rng)), 0, 100),
}


def operation_value(name: str, strength: int, side: int | None = None) -> float:
    """An operation's value at m = `strength` in 1..10; pixels are a share of `side` where one is given."""
    _, least, most = OPERATIONS[name]
    value = least + (most - least) * strength / 10
    return value * side / REFERENCE_SIDE if side and name in IN_PIXELS else value


@dataclass(frozen=True)
class ClassificationTrain:
    """A random crop of the padded image at its own size, a flip, and one operation.

    Attributes:
        pad: pixels of grey around the image before it is cropped.
        flip: probability of a horizontal flip.
        operations: "none", "authors" or "scaled", see the module's docstring.
        normalization: one of `dmt.normalization.NORMALIZATIONS`.
    """

    pad: int = 4
    flip: float = 0.5
    operations: str = "scaled"
    normalization: str = "cifar"

    def __post_init__(self) -> None:
        check_normalization(self.normalization)
        if self.operations not in ("none", "authors", "scaled"):
            raise ValueError(f"operations {self.operations!r} is unknown; there are none, authors, scaled")
        if self.pad < 0 or not 0 <= self.flip <= 1:
            raise ValueError(f"pad {self.pad} must not be negative, flip {self.flip} must be in [0, 1]")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Pixels [H, W, 3] uint8 RGB -> [3, H, W] float32; `rng` is the only source of chance."""
        height, width = image.shape[:2]
        image = np.pad(image, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)), constant_values=FILL)
        y, x = (int(v) for v in rng.integers(0, 2 * self.pad + 1, 2))
        image = image[y : y + height, x : x + width]
        if rng.random() < self.flip:
            image = image[:, ::-1]
        if self.operations != "none":
            name = str(rng.choice(list(OPERATIONS)))
            strength = int(rng.integers(1, 11))
            value = operation_value(name, strength, min(height, width) if self.operations == "scaled" else None)
            picture = Image.fromarray(np.ascontiguousarray(image))
            image = np.array(OPERATIONS[name][0](picture, value, rng))
        return normalise(image, self.normalization)


@dataclass(frozen=True)
class ClassificationTest:
    """An image as it is; `normalization`: one of `dmt.normalization.NORMALIZATIONS`."""

    normalization: str = "cifar"

    def __post_init__(self) -> None:
        check_normalization(self.normalization)

    def __call__(self, image: np.ndarray) -> Tensor:
        """Pixels [H, W, 3] uint8 RGB -> [3, H, W] float32."""
        return normalise(image, self.normalization)
