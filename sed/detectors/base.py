"""The Detector interface: all that methods and evaluation ever see of a model.

A detector takes images in the one convention of `sed.core.structures` and answers in it. Every framework's own
conventions (channel order, pixel range, where the background class sits, box format) stop inside its adapter.

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
    """One backbone pass over one view: the maps (finest first) and the images' geometry.

    Attributes:
        maps: name -> [N, channels, rows, columns].
        images: the normalised, padded input that the maps come from.
    """

    maps: dict[str, Tensor]
    images: Images


def normalize(images: Images, mean: Tensor, std: Tensor, inside: Tensor | None = None) -> Tensor:
    """(pixels - mean) / std, and exactly 0 on the padding, as both frameworks have it.

    Args:
        images: N images.
        mean: broadcastable to [N, 3, H, W], in the order and range of the pixels.
        std: likewise.
        inside: `valid_pixels` of the images, where it is there already.
    """
    return (images.tensor - mean) / std * (valid_pixels(images) if inside is None else inside)


def valid_pixels(images: Images) -> Tensor:
    """Which pixels belong to the images and not to their padding: [N, 1, H, W] bool."""
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
    """A trainable detector.

    Attributes:
        heads: which of {"dense", "region", "query"} this detector answers for.
        num_classes: K.
        size_divisibility: the largest stride; `encode` needs sides that it divides (use `Images.pad_to_multiple`).
        box_coder_weights: of the dense and the region head, the weights of its deltas (dx, dy, log w, log h).
    """

    heads: frozenset[Head]
    num_classes: int
    size_divisibility: int
    box_coder_weights: Mapping[Head, BoxCoderWeights] = MappingProxyType(
        {"dense": UNIT_WEIGHTS, "region": UNIT_WEIGHTS}
    )

    @abstractmethod
    def supervised_losses(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """The stock model's own training losses (call in train mode).

        Returns:
            Scalars named `<head>_cls` and `<head>_box`, for each of `heads`.
        """

    @abstractmethod
    def encode(self, images: Images) -> Features:
        """Run the backbone, once a view. Sides of `images` must be multiples of `size_divisibility`."""

    @abstractmethod
    def detect(self, images: Images) -> list[Detections]:
        """Final detections of each image after NMS, in the frame of `images` (call in eval mode)."""

    def dense(self, features: Features) -> DensePrediction:
        """The dense head's prediction of every anchor."""
        raise self._no_head("dense")

    def propose(self, features: Features, dense: DensePrediction, limit: int) -> list[Tensor]:
        """The best `limit` proposals of each image after NMS, best first: N tensors [P_i, 4], no gradient."""
        raise self._no_head("region")

    def detect_from(self, features: Features, proposals: Sequence[Tensor]) -> list[Detections]:
        """The second half of a two-stage detector's `detect`: after `encode` and `propose`, of all proposals."""
        raise self._no_head("region")

    def proposal_losses(self, features: Features, targets: Sequence[Targets]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The first half of a two-stage detector's own training step (in train mode).

        Args:
            features: of N images.
            targets: of these images.

        Returns:
            The stock losses of the dense head, "dense_cls" and "dense_box"; and the proposals of each image after NMS,
            best first: N tensors [P_i, 4], no gradient.
        """
        raise self._no_head("region")

    def regions(self, features: Features, proposals: Sequence[Tensor]) -> RegionPrediction:
        """The region head's prediction of given boxes, one tensor [P_i, 4] an image; P_i may be 0."""
        raise self._no_head("region")

    def queries(self, features: Features) -> QueryPrediction:
        """What every query of the last decoder layer says."""
        raise self._no_head("query")

    @abstractmethod
    def plain_state_dict(self) -> dict[str, Tensor]:
        """The weights under the stock framework's own names: it loads them without this project."""

    def _no_head(self, head: Head) -> TypeError:
        return TypeError(f"{type(self).__name__} has no {head} head; its heads are {sorted(self.heads)}")
