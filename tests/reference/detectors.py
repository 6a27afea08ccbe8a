"""Tiny detectors for tests: seconds on one core, random weights, no network."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sed.core.structures import Images, LabeledBatch, Targets, UnlabeledBatch
from sed.detectors import DetectorSpec, build_detector
from sed.detectors.base import Detector
from sed.detectors.torchvision_models import TorchvisionDetector

SMALL_RCNN = DetectorSpec(
    num_classes=3,
    backbone="small",
    norm="GN",
    freeze_at=0,
    fpn_channels=16,
    anchor_sizes=((12, 16), (24, 32), (48, 64), (96, 128)),
    aspect_ratios=((1.0,),),
    rpn_topk=(100, 100, 50, 50),
    rpn_batch=32,
    region_batch=32,
    fc_dim=32,
    pool_resolution=4,
    pool_sampling=1,
)
RESNET_RCNN = DetectorSpec(num_classes=3, depth=18, fpn_channels=16, rpn_topk=(100, 100, 50, 50), fc_dim=32)
RESNET_RETINANET = DetectorSpec(architecture="retinanet", num_classes=3, depth=18, fpn_channels=16)
TIMM_RCNN = dataclasses.replace(RESNET_RCNN, backbone="timm:test_efficientnet", fpn_norm="GN", freeze_at=1)
TIMM_RETINANET = dataclasses.replace(RESNET_RETINANET, backbone="timm:test_efficientnet", norm="BN", freeze_at=0)
SPECS = {
    "small_rcnn": SMALL_RCNN,
    "resnet_rcnn": RESNET_RCNN,
    "resnet_retinanet": RESNET_RETINANET,
    "timm_rcnn": TIMM_RCNN,
    "timm_retinanet": TIMM_RETINANET,
}


def make_detector(name: str = "small_rcnn", seed: int = 0) -> TorchvisionDetector:
    """A detector of `SPECS` with weights drawn from `seed`."""
    torch.manual_seed(seed)
    return build_detector(SPECS[name])


def make_images(
    sizes: tuple[tuple[int, int], ...] = ((64, 64), (50, 60)), seed: int = 0, size_divisibility: int = 1
) -> Images:
    """uint8 noise images of the given sizes in one padded batch."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8) for h, w in sizes]
    return Images.from_list(images, size_divisibility)


def make_labeled(sizes: tuple[tuple[int, int], ...] = ((64, 64), (50, 60)), empty: bool = False) -> LabeledBatch:
    """A labelled batch with two boxes an image, or none."""
    boxes = torch.tensor([[4.0, 4, 30, 36], [20, 10, 44, 40]])
    target = Targets(boxes, torch.tensor([0, 2]))
    if empty:
        target = Targets(boxes[:0], torch.zeros(0, dtype=torch.int64))
    return LabeledBatch(make_images(sizes), (target,) * len(sizes))


def make_unlabeled(sizes: tuple[tuple[int, int], ...] = ((64, 64), (50, 60)), seed: int = 1) -> UnlabeledBatch:
    """Two views that differ in pixels and share their geometry."""
    weak = make_images(sizes, seed)
    noise = make_images(sizes, seed + 100)
    return UnlabeledBatch(weak, Images(weak.tensor // 2 + noise.tensor // 4, weak.sizes))


def predict_all(detector: Detector, images: Images, scale: int = 1) -> dict[str, Tensor]:
    """The predictions of all heads on `images`: name -> [N, ...]; of the region head for one box / `scale` an image."""
    features, found = detector.encode(images), {}
    if "dense" in detector.heads:
        for level in detector.dense(features).levels:
            found |= {f"P{level.level} logits": level.logits, f"P{level.level} deltas": level.deltas}
    if "region" in detector.heads:
        region = detector.regions(
            features, [torch.tensor([[3.0, 2, 33, 30]], device=images.tensor.device) / scale] * len(images)
        )
        found |= {"region logits": region.logits, "region deltas": region.deltas}
    if "query" in detector.heads:
        queries = detector.queries(features)
        found |= {"query logits": queries.logits, "query boxes": queries.boxes}
    return found
