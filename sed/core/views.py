"""Geometry between the views of one image (docs/method.md 2).

X^ is X at 1 / 2^s of its size. The cell (row, column) of level f on X and the cell (row, column) of level
f - s on X^ look at the same part of the picture, so anchor i of P_f(X) and of P_{f-s}(X^) is the same anchor.

Detectors with one single map (Detectron2's C4): `sed.core.single_map`.

Shape shorthand: see `sed.core.structures`; a, anchors per cell.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sed.core.single_map import pair_single_map
from sed.core.structures import DenseLevel, DensePrediction, Images, Size

LevelPair = tuple[DenseLevel, DenseLevel]


def downscale(images: Images, s: int) -> Images:
    """X^: each pixel the mean of a 2^s x 2^s block of `images` (area interpolation, so it does not alias).

    Args:
        images: X, padded so that its sides divide by 2^s; the network needs largest stride x 2^s.
        s: >= 0; 0: the same pixels.

    Returns:
        Float images of 1 / 2^s of the size; valid sizes are rounded up.

    Raises:
        ValueError: where 2^s does not divide the padded sides.
    """
    block = 2 ** max(s, 0)
    height, width = images.padded_size
    if s < 0 or height % block or width % block:
        raise ValueError(
            f"downscale: expected s >= 0 and padded sides that divide by 2^s, got s = {s} and sides "
            f"{height} x {width}; pad with Images.pad_to_multiple(largest stride * 2**s)"
        )
    tensor = images.tensor
    pixels = tensor if tensor.is_floating_point() else tensor.float()
    if s == 0:
        return Images(pixels, images.sizes)
    sizes = tuple((_ceil_div(h, block), _ceil_div(w, block)) for h, w in images.sizes)
    return Images(F.avg_pool2d(pixels, block), sizes)  # [N, 3, H / 2^s, W / 2^s]


def pair_levels(full: DensePrediction, small: DensePrediction, s: int) -> list[LevelPair]:
    """Pair P_f(X) with P_{f-s}(X^) for every f where both exist; the end levels without partner take no part.

    A detector with one single map has no such pair: see `sed.core.single_map`. With s = 0, two views of one size, every
    level is paired with itself.

    Args:
        full: prediction on X.
        small: prediction on X^ = downscale(X, s), by the same kind of detector.
        s: >= 0.

    Returns:
        (level of X, level of X^) of equal grids and shapes, finest first.

    Raises:
        ValueError: where no pair exists, where paired grids differ, or where the anchors of a single map are unknown
            or have no partner.
    """
    if s == 0:
        pairs = list(zip(full.levels, small.levels, strict=True))
    elif len(full.levels) == 1 and len(small.levels) == 1:
        pairs = [pair_single_map(full.levels[0], small.levels[0], s)]
    else:
        partners = {level.level: level for level in small.levels}
        pairs = [(level, partners[level.level - s]) for level in full.levels if level.level - s in partners]
    if not pairs:
        raise ValueError(
            f"pair_levels: no level of {[level.level for level in full.levels]} has a partner {s} below it; "
            f"lower SED.MAX_SCALE"
        )
    for one, other in pairs:
        if one.grid != other.grid or one.logits.shape != other.logits.shape:
            raise ValueError(
                f"pair_levels: level {one.level} of X has grid {one.grid} and logits "
                f"{tuple(one.logits.shape)}, its partner {other.level} of X^ {other.grid} and "
                f"{tuple(other.logits.shape)}; pad X so that its sides divide by largest stride x 2^s"
            )
    return pairs


def draw_scale(step: int, max_scale: int, seed: int = 0) -> int:
    """The s ~ U{1..S} of `step`: a function of its arguments alone, so equal on all ranks and after a resume.

    With max_scale 0 it is 0: X^ has the size of X.

    Raises:
        ValueError: for max_scale < 0.
    """
    if max_scale < 0:
        raise ValueError(f"draw_scale: expected max_scale (S) >= 0, got {max_scale}")
    if max_scale == 0:
        return 0
    return random.Random(f"scale {seed} {step}").randint(1, max_scale)


def resize(images: Images, scale: float) -> Images:
    """`images` at `scale` times their size, bilinear with antialiasing: the point (x, y) moves to (scale x, scale y).

    Args:
        images: N images of any padded sides.
        scale: in (0, 1]; 1: the same pixels.

    Returns:
        Float images; padded sides are rounded down, valid sizes up to what is there.

    Raises:
        ValueError: for another scale, or one that leaves nothing of an image.
    """
    height, width = (math.floor(side * scale) for side in images.padded_size)
    if not 0 < scale <= 1 or min(height, width) < 1:
        raise ValueError(f"resize: expected a scale in (0, 1] that leaves a pixel of {images.padded_size}, got {scale}")
    pixels = images.tensor if images.tensor.is_floating_point() else images.tensor.float()
    if scale == 1:
        return Images(pixels, images.sizes)
    pixels = F.interpolate(pixels, scale_factor=scale, mode="bilinear", antialias=True, recompute_scale_factor=False)
    sizes = tuple((min(math.ceil(h * scale), height), min(math.ceil(w * scale), width)) for h, w in images.sizes)
    return Images(pixels, sizes)


def draw_size(step: int, least: float, seed: int = 0) -> float:
    """The scale ~ U[least, 1] of `step`: a function of its arguments alone, so equal on all ranks and after a resume.

    Raises:
        ValueError: for a `least` outside (0, 1].
    """
    if not 0 < least <= 1:
        raise ValueError(f"draw_size: expected a least scale in (0, 1], got {least}")
    return random.Random(f"size {seed} {step}").uniform(least, 1.0)


def valid_anchors(
    sizes: Sequence[Size], level: int, grid: Size, anchors_per_cell: int, device: torch.device | str
) -> Tensor:
    """Which anchors count: those whose cell's top left corner (column 2^f, row 2^f) lies on the image.

    Args:
        sizes: N valid (height, width) pairs.
        level: f.
        grid: (rows, columns) of the map.
        anchors_per_cell: a.
        device: where the mask is wanted.

    Returns:
        [N, rows x columns x a] bool in (row, column, anchor) order.
    """
    device = torch.device(device)
    stride = 2**level
    counts = torch.tensor([[_ceil_div(h, stride), _ceil_div(w, stride)] for h, w in sizes])  # [N, 2]
    if device.type == "cuda":
        counts = counts.pin_memory()  # so that the copy does not wait for the device
    counts = counts.to(device, non_blocking=True)
    rows = torch.arange(grid[0], device=device) < counts[:, :1]  # [N, rows]
    columns = torch.arange(grid[1], device=device) < counts[:, 1:]  # [N, columns]
    cells = rows[:, :, None] & columns[:, None, :]  # [N, rows, columns]
    return cells[..., None].expand(-1, -1, -1, anchors_per_cell).reshape(len(sizes), -1)  # [N, A]


def _ceil_div(value: int, by: int) -> int:
    return (value + by - 1) // by
