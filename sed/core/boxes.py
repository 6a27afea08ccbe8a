"""Box geometry. Boxes are (x0, y0, x1, y1) pixels, sizes (height, width): see `sed.core.structures`.

Shape shorthand: B and D, numbers of boxes; .., any leading dimensions, the same for both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sed.core.structures import Size

BoxCoderWeights = tuple[float, float, float, float]  # of (dx, dy, log w, log h)
UNIT_WEIGHTS: BoxCoderWeights = (1.0, 1.0, 1.0, 1.0)  # plain deltas: RPN, RetinaNet


def area(boxes: Tensor) -> Tensor:
    """Areas [..] of boxes [.., 4], in square pixels; a box with x1 <= x0 or y1 <= y0 has area 0."""
    return _extent(boxes[..., :2], boxes[..., 2:])


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """IoU [.., B, D], in [0, 1], of boxes a [.., B, 4] and b [.., D, 4]; 0 where the union is empty."""
    inter, union = _intersection_and_union(a, b)
    return _ratio(inter, union)


def giou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU [.., B, D], in [-1, 1], of boxes a [.., B, 4] and b [.., D, 4].

    GIoU = IoU - (hull - union) / hull, hull the smallest box around both (https://arxiv.org/abs/1902.09630).
    """
    inter, union = _intersection_and_union(a, b)
    hull = _extent(  # [.., B, D]
        torch.minimum(a[..., :, None, :2], b[..., None, :, :2]), torch.maximum(a[..., :, None, 2:], b[..., None, :, 2:])
    )
    return _ratio(inter, union) - _ratio(hull - union, hull)


def corners(boxes: Tensor) -> Tensor:
    """(x0, y0, x1, y1) of boxes [.., 4] given as (cx, cy, w, h)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def encode_boxes(regions: Tensor, boxes: Tensor, weights: BoxCoderWeights) -> Tensor:
    """Deltas [.., 4] from regions [.., 4] to boxes [.., 4]; widths and heights of both must be positive.

    With centre (cx, cy), width w and height h, the deltas are

        ((cx_box - cx_region) / w_region, (cy_box - cy_region) / h_region, log(w_box / w_region), log(h_box / h_region))

    times the weights, as in the box coders of torchvision and Detectron2.
    """
    size, own = regions[..., 2:] - regions[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - regions[..., :2] - regions[..., 2:]) / 2 / size
    deltas = torch.cat((shift, (own / size).log()), -1)
    return torch.stack([delta * w for delta, w in zip(deltas.unbind(-1), weights, strict=True)], -1)


def scale_boxes(boxes: Tensor, factor: float) -> Tensor:
    """Boxes [.., 4] of an image resized by `factor` about its top left corner (X to X^: 1 / 2^s)."""
    return boxes * factor


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Boxes [.., 4] cut at the borders of an image of `size` (height, width); those outside get zero area."""
    height, width = size
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack((x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)), dim=-1)


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Boxes [.., 4] of an image of `width` pixels mirrored left to right."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack((width - x1, y0, width - x0, y1), dim=-1)


def _extent(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    return (bottom_right - top_left).clamp(min=0).prod(-1)


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    inter = _extent(  # [.., B, D]
        torch.maximum(a[..., :, None, :2], b[..., None, :, :2]), torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    )
    return inter, area(a)[..., :, None] + area(b)[..., None, :] - inter


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """The ratio, and 0 where whole is 0, without the NaN gradient that torch.where(0 / 0) would have."""
    return part / torch.where(whole > 0, whole, torch.ones_like(whole))
