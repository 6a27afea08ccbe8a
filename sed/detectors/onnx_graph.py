"""Detectors as what PyTorch's exporters can follow: one image in, the detections of `Detector.detect` out.

`Detector.detect` works on batches and holds sizes as Python integers, which an exporter would keep as constants. The
modules here call the same parts of the same models in the same order on one image whose sizes stay variables.

The exporter that follows them is that of TorchScript (`dynamo=False`), for which torchvision's models are written. The
newer one (torch 2.14) refuses DETR's variable sizes and keeps RT-DETR's as constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from sed.core.boxes import corners
from sed.detectors.base import Detector
from sed.detectors.detr import QueryDetector, call_model
from sed.detectors.torchvision_models import TorchvisionRCNN, TorchvisionRetinaNet

Found = tuple[Tensor, Tensor, Tensor]


class Graph(nn.Module):
    """A detector of one image: `image` [H, W, 3] uint8 RGB -> boxes [D, 4], labels [D], scores [D], best first.

    Boxes are (x0, y0, x1, y1) in pixels of the image, labels int64 in 0..K-1, scores float32 in [0, 1].

    Args:
        detector: on the CPU, in eval mode; its weights are shared.
        score_threshold: detections are above it.
    """

    def __init__(self, detector: Detector, score_threshold: float) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("score_threshold", torch.tensor(score_threshold))

    def pixels(self, image: Tensor) -> Tensor:
        """The normalised image, padded with 0 to sides that the stride divides: [1, 3, H', W']."""
        height, width, _ = image.shape
        step = self.detector.size_divisibility
        planes = image.permute(2, 0, 1)[None].float()  # [1, 3, H, W]
        planes = (planes - self.detector.pixel_mean) / self.detector.pixel_std
        return F.pad(planes, (0, -width % step, 0, -height % step))


class TorchvisionGraph(Graph):
    """See `Graph`; what torchvision's detectors share."""

    def encode(self, image: Tensor) -> tuple[ImageList, dict[str, Tensor]]:
        """The image with its own size, and its feature maps, finest first."""
        height, width, _ = image.shape
        pixels = self.pixels(image)
        maps = self.detector.model.backbone(pixels)
        return ImageList(pixels, [(height, width)]), maps if isinstance(maps, dict) else {"0": maps}


class RCNNGraph(TorchvisionGraph):
    """See `Graph`; of Faster R-CNN."""

    def forward(self, image: Tensor) -> Found:
        """See `Graph`."""
        model = self.detector.model
        images, maps = self.encode(image)
        proposals, _ = model.rpn(images, maps)
        (found,), _ = model.roi_heads(maps, proposals, images.image_sizes)
        return found["boxes"], found["labels"] - 1, found["scores"]


class RetinaNetGraph(TorchvisionGraph):
    """See `Graph`; of RetinaNet."""

    def forward(self, image: Tensor) -> Found:
        """See `Graph`."""
        model = self.detector.model
        images, maps = self.encode(image)
        levels = list(maps.values())
        outputs = [model.head([level]) for level in levels]  # level by level: no split at sizes that vary
        split = {name: [output[name] for output in outputs] for name in ("cls_logits", "bbox_regression")}
        anchors = model.anchor_generator(images, levels)[0]
        ends = [sum(o["cls_logits"].shape[1] for o in outputs[: i + 1]) for i in range(len(levels))]
        parts = [anchors[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        (found,) = model.postprocess_detections(split, [parts], images.image_sizes)
        real = found["labels"].nonzero().squeeze(1)
        return found["boxes"][real], found["labels"][real] - 1, found["scores"][real]


class QueryGraph(Graph):
    """See `Graph`; of the DETR family."""

    def forward(self, image: Tensor) -> Found:
        """See `Graph`."""
        detector = self.detector
        height, width, _ = image.shape
        pixels = self.pixels(image)
        inside = torch.ones_like(image[None, ..., 0], dtype=torch.int64)  # [1, H, W]
        inside = F.pad(inside, (0, pixels.shape[3] - width, 0, pixels.shape[2] - height))
        output = call_model(detector.model, pixels, inside)
        logits = output.logits[0, : detector.num_queries].float()  # [Q, C]
        boxes = corners(output.pred_boxes[0, : detector.num_queries].float())
        if detector.softmax:
            scores, classes = logits.softmax(-1)[:, :-1].max(-1)  # [Q]
            scores, query = scores.topk(min(detector.detections, detector.num_queries))
            labels = classes[query]
        else:
            count = min(detector.detections, detector.num_queries * detector.num_classes)
            scores, best = logits.sigmoid().flatten().topk(count)  # of [Q K]
            query, labels = best // detector.num_classes, best % detector.num_classes
        whole = _corner(height, width)
        frame = whole if detector.reads_mask else _corner(*pixels.shape[2:])
        boxes = (boxes[query] * frame).clamp(min=0).minimum(whole)
        keep = scores > self.score_threshold
        return boxes[keep], labels[keep], scores[keep]


def _corner(height: int, width: int) -> Tensor:
    """(width, height, width, height) [4] float32, of sides that are variables."""
    return torch.stack([torch.ones(()) * side for side in (width, height, width, height)])


def graph(detector: Detector, score_threshold: float) -> Graph | None:
    """The exportable form of a detector; None where there is none (Detectron2's).

    Args:
        detector: see `Graph`.
        score_threshold: see `Graph`. A detector of torchvision uses it inside of `threshold(detector, buffer)` only.
    """
    kinds = ((TorchvisionRCNN, RCNNGraph), (TorchvisionRetinaNet, RetinaNetGraph), (QueryDetector, QueryGraph))
    made = next((form for kind, form in kinds if isinstance(detector, kind)), None)
    return made and made(detector, score_threshold)


@contextmanager
def threshold(detector: Detector, value: float | Tensor) -> Iterator[None]:
    """A context in which a detector of torchvision keeps detections above `value`, a scalar or a scalar tensor.

    The DETR family has no threshold; nothing is changed.
    """
    owner = getattr(detector.model, "roi_heads", detector.model)
    before = getattr(owner, "score_thresh", None)
    if before is None:
        yield
        return
    try:
        owner.score_thresh = value
        yield
    finally:
        owner.score_thresh = before
