"""Geometric augmentation (A.2 of the paper): one of RandAugment's rotate, translate and shear for each image.

It is applied to the weak view before the other views are made from it, so that X_w, X_s, X^ and the teacher's input
share one geometry and their anchors stay aligned (docs/method.md 2). What the paper leaves open [O]:

- Level 5 of 10 is half of RandAugment's largest magnitudes, on which its implementations agree: 30 degrees, a shear of
  0.3, and a translation of 0.45 of the side (100 of 224 pixels). As in RandAugment the magnitude is fixed and the sign
  is drawn; translate and shear also draw their axis. One of the three is always applied.
- Rotation and shear keep the centre of the image, so that as little as possible leaves it.
- The image keeps its size; pixels from outside of it are grey, 128 (RandAugment's colour).
- A box becomes the bounding box of its transformed corners, clipped to the image; a box of which less than half remains
  inside is dropped.

Coordinates are continuous: pixel (row i, column j) covers [j, j + 1] x [i, i + 1], as boxes have it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from sed.core.structures import Size, Targets

log = logging.getLogger(__name__)
MAX_LEVEL = 10.0
MAX_DEGREES, MAX_SHEAR, MAX_SHIFT = 30.0, 0.3, 0.45  # at level 10; the shift as a share of the side
FILL = (128, 128, 128)
KEPT = 0.5  # least share of a transformed box inside the image
_STREAM = 1  # fourth word of the seed, after (seed, stream, position); a sample's other generator has three
_COUNTED = 2000  # images that `log_dropped` counts in


@dataclass(frozen=True)
class Turn:
    """One affine map, for images of any size.

    Attributes:
        linear: ((a, b), (c, d)): (x, y) from the centre -> (a x + b y, c x + d y) from the centre, in pixels.
        shift: (x, y) added then, as shares of width and height.
    """

    linear: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))
    shift: tuple[float, float] = (0.0, 0.0)

    def matrix(self, size: Size) -> np.ndarray:
        """[2, 3] float64: (x, y, 1) -> (x, y), pixels of an image of `size` (height, width)."""
        extent = np.array([size[1], size[0]], np.float64)
        linear = np.array(self.linear)
        return np.column_stack([linear, extent / 2 - linear @ extent / 2 + self.shift * extent])

    def image(self, image: np.ndarray) -> np.ndarray:
        """The transformed image, [H, W, 3] uint8, of the same size."""
        height, width = image.shape[:2]
        matrix = self.matrix((height, width))
        matrix[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5  # OpenCV counts from the centre of the first pixel
        # INTER_LINEAR: nothing shrinks here, so nothing aliases
        return cv2.warpAffine(
            image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=FILL
        )

    def boxes(self, boxes: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """The transformed boxes, clipped to the image, and which of them are kept.

        Args:
            boxes: [G, 4] xyxy in pixels.
            size: (height, width) of the image.

        Returns:
            [G, 4] float64 boxes; [G] bool, False for a box of which less than KEPT is inside the image.
        """
        x0, y0, x1, y1 = boxes.astype(np.float64).reshape(-1, 4).T
        corners = np.stack([[x0, x1, x0, x1], [y0, y0, y1, y1]])  # [2, 4, G]
        matrix = self.matrix(size)
        turned = np.tensordot(matrix[:, :2], corners, 1) + matrix[:, 2, None, None]
        hull = np.concatenate([turned.min(1), turned.max(1)]).T
        clipped = np.clip(hull, 0, [size[1], size[0]] * 2)
        sides = clipped[:, 2:] - clipped[:, :2]
        inside, whole = sides.prod(1), (hull[:, 2:] - hull[:, :2]).prod(1)
        return clipped, (sides > 0).all(1) & (inside >= KEPT * whole)


@dataclass(frozen=True)
class GeometricAugmentation:
    """Draws and applies one `Turn` for each sample; it depends on (seed, stream, position) alone.

    Attributes:
        level: RandAugment's strength, 0 to 10.
        seed: of the run.
    """

    level: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.level <= MAX_LEVEL:
            raise ValueError(f"geometric augmentation: expected a level from 0 to {MAX_LEVEL:g}, got {self.level}")

    def draw(self, stream: int, position: int) -> Turn:
        """The affine map of a sample: rotate, translate or shear, each with probability 1/3."""
        rng = np.random.default_rng([self.seed, stream, position, _STREAM])
        op, axis, sign = (int(n) for n in rng.integers(0, (3, 2, 2)))
        part = (1 - 2 * sign) * self.level / MAX_LEVEL
        if op == 0:
            angle = math.radians(part * MAX_DEGREES)
            cos, sin = math.cos(angle), math.sin(angle)
            return Turn(((cos, -sin), (sin, cos)))
        if op == 1:
            return Turn(shift=(0.0, part * MAX_SHIFT) if axis else (part * MAX_SHIFT, 0.0))
        shear = part * MAX_SHEAR
        return Turn(((1.0, 0.0), (shear, 1.0)) if axis else ((1.0, shear), (0.0, 1.0)))

    def labeled(self, image: np.ndarray, targets: Targets, stream: int, position: int) -> tuple[np.ndarray, Targets]:
        """The transformed image [H, W, 3] and its boxes, without those that are mostly outside."""
        turn = self.draw(stream, position)
        boxes, kept = turn.boxes(targets.boxes.numpy(), image.shape[:2])
        boxes = torch.from_numpy(boxes[kept].astype(np.float32))
        return turn.image(image), Targets(boxes, targets.classes[torch.from_numpy(kept)])

    def unlabeled(self, image: np.ndarray, stream: int, position: int) -> np.ndarray:
        """The transformed image [H, W, 3]."""
        return self.draw(stream, position).image(image)

    def dropped(self, records: Sequence[dict[str, Any]], stream: int) -> tuple[int, int]:
        """(boxes dropped, all boxes) of these records as the first samples, unflipped; reads no image."""
        lost = total = 0
        for position, record in enumerate(records):
            boxes = np.array([a["bbox"] for a in record["annotations"] if not a["iscrowd"]]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            kept = self.draw(stream, position).boxes(boxes, (record["height"], record["width"]))[1]
            lost, total = lost + int((~kept).sum()), total + len(kept)
        return lost, total


def build_geometric(kind: str, level: float, seed: int) -> GeometricAugmentation | None:
    """The augmentation of INPUT.GEOMETRIC and INPUT.GEOMETRIC_LEVEL; None for "none".

    Raises:
        ValueError: for another kind, or a level outside 0 to 10.
    """
    if kind == "none":
        return None
    if kind != "randaugment":
        raise ValueError(f"geometric augmentation: expected none or randaugment, got {kind!r}")
    return GeometricAugmentation(level, seed)


def log_dropped(geometric: GeometricAugmentation | None, records: Sequence[dict[str, Any]], stream: int) -> None:
    """Log once how many boxes the augmentation drops, counted in the first labelled images."""
    if geometric is not None:
        few = records[:_COUNTED]
        lost, total = geometric.dropped(few, stream)
        text = (
            "geometric augmentation: of %d boxes (first %d labelled images) %d are dropped: more than half is outside"
        )
        log.info(text, total, len(few), lost)
