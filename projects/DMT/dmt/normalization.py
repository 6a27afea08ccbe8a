"""Pixels -> what a network expects, by name.

Shape shorthand: H and W, an image's sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """(pixel / scale - mean) / std, channel by channel; `mean` and `std` are in the order of the output."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 255.0
    bgr: bool = False


NORMALIZATIONS = {
    # What the authors' COCO weights expect: Caffe's, blue first.
    "caffe": Normalization((104.008, 116.669, 122.675), (1.0, 1.0, 1.0), scale=1.0, bgr=True),
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": Normalization((0.49137, 0.48235, 0.44667), (0.24706, 0.24353, 0.26157)),
    "half": Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}


def check_normalization(name: str) -> None:
    """Raise ValueError for a name that is not in `NORMALIZATIONS`."""
    if name not in NORMALIZATIONS:
        raise ValueError(f"normalisation {name!r} is unknown; there are {', '.join(NORMALIZATIONS)}")


def normalise(image: np.ndarray, name: str) -> Tensor:
    """Pixels [H, W, 3] uint8 RGB -> [3, H, W] float32, in the order of channels and the range that `name` says."""
    n = NORMALIZATIONS[name]
    pixels = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1] if n.bgr else image))
    mean, std = (torch.tensor(values)[:, None, None] * n.scale for values in (n.mean, n.std))
    return ((pixels.permute(2, 0, 1) - mean) / std).contiguous()
