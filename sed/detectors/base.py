"""The Detector interface: all that methods and evaluation use of a model.

A detector takes images in the convention of `sed.core.structures` and returns predictions in it. The conventions of the
frameworks (channel order, pixel range, index of the background class, box format) stay inside their adapters.

| framework   | pixels        | boxes                 | background / "no object" |
| ---         | ---           | ---                   | ---                      |
| torchvision | RGB, [0, 1]   | absolute xyxy         | label 0                  |
| Detectron2  | INPUT.FORMAT  | absolute xyxy         | last                     |
| transformers | RGB, [0, 1]  | (cx, cy, w, h) in [0, 1] | last with softmax, none with sigmoid |
| here        | RGB, 0..255   | absolute xyxy         | last, where there is one |

Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from sed.core.boxes import UNIT_WEIGHTS, BoxCoderWeights
from sed.core.structures import (
    DensePrediction,
    Detections,
    Images,
    LabeledBatch,
    QueryPrediction,
    RegionPrediction,
    Targets,
)

Head = Literal["dense", "region", "query"]


@dataclass(frozen=True)
class Features:
    """The result of one backbone pass over one view: the feature maps, finest first, and the images they come from.

    Attributes:
        maps: name -> [N, channels, rows, columns].
        images: the normalised and padded input.
    """

    maps: dict[str, Tensor]
    images: Images


def normalize(images: Images, mean: Tensor, std: Tensor, inside: Tensor | None = None) -> Tensor:
    """(pixels - mean) / std, and exactly 0 on the padding, as in torchvision and Detectron2: [N, 3, H, W].

    Args:
        images: N images.
        mean: broadcastable to [N, 3, H, W], in the channel order and range of the pixels.
        std: likewise.
        inside: `valid_pixels` of the images, if already computed.
    """
    return (images.tensor - mean) / std * (valid_pixels(images) if inside is None else inside)


def valid_pixels(images: Images) -> Tensor:
    """[N, 1, H, W] bool: True where a pixel belongs to an image, False on its padding."""
    device = images.tensor.device
    height, width = images.padded_size
    rows = torch.arange(height, device=device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=device).view(1, 1, 1, -1)
    sizes = torch.tensor(images.sizes).to(device, non_blocking=True)  # [N, 2]
    return (rows < sizes[:, 0].view(-1, 1, 1, 1)) & (columns < sizes[:, 1].view(-1, 1, 1, 1))


def check_sides(images: Images, size_divisibility: int) -> None:
    """Raise ValueError unless `size_divisibility` divides the sides of the padded batch."""
    height, width = images.padded_size
    if height % size_divisibility or width % size_divisibility:
        raise ValueError(f"images of {height} x {width}: sides must be multiples of the stride {size_divisibility}")


class Detector(nn.Module, ABC):
    """A trainable detector with one or more of the heads "dense", "region" and "query".

    A one-stage detector has a dense head (RetinaNet), a two-stage one a dense (RPN) and a region head (Faster R-CNN), a
    member of the DETR family a query head.

    Attributes:
        heads: the heads that it has; the methods below that belong to another head raise TypeError.
        num_classes: K.
        size_divisibility: the largest stride; `encode` needs sides that it divides (use `Images.pad_to_multiple`).
        box_coder_weights: head -> the weights of its deltas (dx, dy, log w, log h), for "dense" and "region".
        class_names: of the classes 0..K-1, as the data that it was trained on has them; empty: not known.
    """

    heads: frozenset[Head]
    num_classes: int
    size_divisibility: int
    class_names: tuple[str, ...] = ()
    box_coder_weights: Mapping[Head, BoxCoderWeights] = MappingProxyType(
        {"dense": UNIT_WEIGHTS, "region": UNIT_WEIGHTS}
    )

    @abstractmethod
    def supervised_losses(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """The model's own training losses, as its framework computes them (call in train mode).

        Returns:
            Scalars named `<head>_cls` and `<head>_box`, for each of `heads`.
        """

    @abstractmethod
    def encode(self, images: Images) -> Features:
        """The features of one view: one pass of the backbone.

        Raises:
            ValueError: unless `size_divisibility` divides the padded sides.
        """

    @abstractmethod
    def detect(self, images: Images) -> list[Detections]:
        """Final detections of each image, after NMS (but for queries), in pixels of `images` (call in eval mode)."""

    def dense(self, features: Features) -> DensePrediction:
        """The dense head's predictions of all anchors."""
        raise self._no_head("dense")

    def propose(self, features: Features, dense: DensePrediction, limit: int) -> list[Tensor]:
        """The best `limit` proposals of each image after NMS, best first: N tensors [P_i, 4], no gradient."""
        raise self._no_head("region")

    def detect_from(self, features: Features, proposals: Sequence[Tensor]) -> list[Detections]:
        """Final detections from given features and proposals: the rest of `detect` in a two-stage detector."""
        raise self._no_head("region")

    def proposal_losses(self, features: Features, targets: Sequence[Targets]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The RPN's losses and proposals in a two-stage detector's own training step (call in train mode).

        Args:
            features: of N images.
            targets: ground truth of these images.

        Returns:
            The model's own losses "dense_cls" and "dense_box"; and the proposals of each image after NMS, best first: N
            tensors [P_i, 4], no gradient.
        """
        raise self._no_head("region")

    def regions(self, features: Features, proposals: Sequence[Tensor]) -> RegionPrediction:
        """The region head's predictions of given boxes, one tensor [P_i, 4] an image; P_i may be 0."""
        raise self._no_head("region")

    def queries(self, features: Features) -> QueryPrediction:
        """The predictions of all queries of the last decoder layer."""
        raise self._no_head("query")

    @abstractmethod
    def plain_state_dict(self) -> dict[str, Tensor]:
        """The weights under the framework's own names, so that it loads them without this project."""

    def _no_head(self, head: Head) -> TypeError:
        return TypeError(f"{type(self).__name__} has no {head} head; its heads are {sorted(self.heads)}")
