"""The data types passed between packages (images, targets, predictions), and their conventions, stated only here.

Shape shorthand: N images, H and W padded height and width, G ground-truth boxes, A anchors of one level in (row,
column, anchor) order, C class logits of an anchor or query, R regions of the batch, Q queries, K foreground classes.

Conventions:
    box     (x0, y0, x1, y1), pixels of the padded tensor, x right, y down; queries: (cx, cy, w, h) as fractions.
    size    (height, width), in this order.
    pixels  RGB, 0..255, uint8 or float.
    class   0..K-1; where a head has a background logit it is the last one, index K.
    level   f: the feature map of stride 2**f.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Images:
    """A padded batch of images.

    Attributes:
        tensor: [N, 3, H, W] pixels; each image lies at the top left, the rest is padding (value 0).
        sizes: N valid (height, width) pairs, each at most (H, W).
    """

    tensor: Tensor
    sizes: tuple[Size, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.tensor.shape)
        if len(shape) != 4 or len(self.sizes) != shape[0]:
            raise ValueError(
                f"Images: expected a [N, 3, H, W] tensor and N sizes, got {shape} and {len(self.sizes)} sizes"
            )

    @classmethod
    def from_list(cls, images: Sequence[Tensor], multiple: int = 1) -> Images:
        """Batch [3, h, w] tensors of any sizes, padded right and bottom to sides that `multiple` divides."""
        height, width = (_round_up(max(image.shape[side] for image in images), multiple) for side in (1, 2))
        tensor = images[0].new_zeros((len(images), 3, height, width))
        for slot, image in zip(tensor, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]].copy_(image)
        return cls(tensor, tuple((int(i.shape[1]), int(i.shape[2])) for i in images))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def padded_size(self) -> Size:
        """(H, W) of the padded tensor."""
        return int(self.tensor.shape[2]), int(self.tensor.shape[3])

    def to(self, device: torch.device | str) -> Images:
        """The same images on `device` (asynchronous from pinned memory)."""
        return replace(self, tensor=self.tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Images:
        """The same images in page-locked memory."""
        return replace(self, tensor=self.tensor.pin_memory())

    def pad_to_multiple(self, multiple: int) -> Images:
        """The same images, padded further so that `multiple` divides H and W."""
        height, width = self.padded_size
        bottom, right = -height % multiple, -width % multiple
        return replace(self, tensor=F.pad(self.tensor, (0, right, 0, bottom))) if bottom or right else self


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image: boxes [G, 4] float32, classes [G] int64 in 0..K-1. G may be 0."""

    boxes: Tensor
    classes: Tensor

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on `device`."""
        return Targets(self.boxes.to(device, non_blocking=True), self.classes.to(device, non_blocking=True))

    def pin_memory(self) -> Targets:
        """The same targets in page-locked memory."""
        return Targets(self.boxes.pin_memory(), self.classes.pin_memory())


@dataclass(frozen=True)
class LabeledBatch:
    """n_s labelled images and their targets, in the same order."""

    images: Images
    targets: tuple[Targets, ...]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> LabeledBatch:
        """The same batch on `device`."""
        return LabeledBatch(self.images.to(device), tuple(t.to(device) for t in self.targets))

    def pin_memory(self) -> LabeledBatch:
        """The same batch in page-locked memory."""
        return LabeledBatch(self.images.pin_memory(), tuple(t.pin_memory() for t in self.targets))


@dataclass(frozen=True)
class UnlabeledBatch:
    """n_u unlabelled images in two views of one geometry: X_w and X_s of docs/method.md 2."""

    weak: Images
    strong: Images

    def __post_init__(self) -> None:
        if self.weak.tensor.shape != self.strong.tensor.shape or self.weak.sizes != self.strong.sizes:
            raise ValueError("UnlabeledBatch: the weak and the strong view must share one geometry")

    def __len__(self) -> int:
        return len(self.weak)

    def to(self, device: torch.device | str) -> UnlabeledBatch:
        """The same batch on `device`."""
        return UnlabeledBatch(self.weak.to(device), self.strong.to(device))

    def pin_memory(self) -> UnlabeledBatch:
        """The same batch in page-locked memory."""
        return UnlabeledBatch(self.weak.pin_memory(), self.strong.pin_memory())


@dataclass(frozen=True)
class DenseLevel:
    """The prediction of a dense head (RPN, one-stage) for one pyramid level.

    Attributes:
        level: f, of stride 2**f.
        grid: (rows, columns) of the map.
        logits: [N, A, C] sigmoid logits, A = rows x columns x anchors a cell (RPN: C = 1; one-stage: C = K).
        deltas: [N, A, 4] box regression in the detector's own normalised deltas.
        valid: [N, A] bool, False where the anchor's cell lies on padding; no loss counts those.
        anchors: (width, height) in pixels of each anchor of a cell; needed only of a single map (C4).
    """

    level: int
    grid: Size
    logits: Tensor
    deltas: Tensor
    valid: Tensor
    anchors: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class DensePrediction:
    """The levels of a dense head, finest first."""

    levels: tuple[DenseLevel, ...]


@dataclass(frozen=True)
class RegionPrediction:
    """The prediction of a region head for R given proposals, image after image.

    Attributes:
        logits: [R, K + 1] softmax logits, background last.
        deltas: [R, K, 4] (class-specific) or [R, 1, 4] (class-agnostic) normalised deltas.
        counts: how many of the R rows belong to each image; sums to R.
    """

    logits: Tensor
    deltas: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class QueryPrediction:
    """The prediction of a query detector (the DETR family): logits [N, Q, C] and boxes [N, Q, 4] (cx, cy, w, h).

    With `softmax` C is K + 1, "no object" last; without, C = K sigmoid logits.
    """

    logits: Tensor
    boxes: Tensor
    softmax: bool


@dataclass(frozen=True)
class Detections:
    """Final detections of one image, best first: boxes [D, 4], scores [D] in [0, 1], classes [D] in 0..K-1."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
