"""Detectors by name and numbers, for the entry scripts; ready-built models go through `wrap` instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from sed.detectors.backbones import SmallFPN, resnet_fpn
from sed.detectors.base import Detector
from sed.detectors.detr import QueryDetector
from sed.detectors.torchvision_models import TorchvisionDetector, TorchvisionRCNN, TorchvisionRetinaNet


@dataclass(frozen=True)
class DetectorSpec:
    """Everything that tells one detector from another; the defaults are the paper's Faster R-CNN R50-FPN.

    Attributes:
        architecture: "rcnn" or "retinanet".
        num_classes: K, without background.
        backbone: "resnet" or "small".
        depth: of the ResNet.
        norm: "FrozenBN", "BN" or "GN".
        freeze_at: see `sed.detectors.backbones.resnet_fpn`.
        fpn_channels: channels of every pyramid level.
        anchor_sizes: one list a level, pixels (square root of the area).
        aspect_ratios: height / width; one list for all levels, or one a level.
        pixel_mean: RGB, 0..255.
        pixel_std: RGB, 0..255.
        rpn_topk: proposals kept (before NMS in training, in testing, after NMS in training, in testing).
        rpn_nms: IoU above which the RPN's weaker proposal goes.
        rpn_batch: anchors sampled an image for the supervised RPN loss.
        region_batch: proposals sampled an image for the supervised region loss.
        fc_dim: width of the region head's two layers.
        pool_resolution: side of RoIAlign's grid.
        pool_sampling: sampling points a bin and axis.
        score_threshold: detections below it are dropped.
        nms_threshold: IoU above which the weaker detection of a class goes.
        detections: kept an image.
        dense_topk: candidates a level of a one-stage detector before NMS.
    """

    architecture: str = "rcnn"
    num_classes: int = 80
    backbone: str = "resnet"
    depth: int = 50
    norm: str = "FrozenBN"
    freeze_at: int = 2
    fpn_channels: int = 256
    anchor_sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,), (256,), (512,))
    aspect_ratios: Sequence[Sequence[float]] = ((0.5, 1.0, 2.0),)
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53)
    pixel_std: Sequence[float] = (58.395, 57.12, 57.375)
    rpn_topk: tuple[int, int, int, int] = (2000, 1000, 1000, 1000)
    rpn_nms: float = 0.7
    rpn_batch: int = 256
    region_batch: int = 512
    fc_dim: int = 1024
    pool_resolution: int = 7
    pool_sampling: int = 2
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections: int = 100
    dense_topk: int = 1000


def wrap(model: nn.Module) -> Detector:
    """A ready-built detection model of torchvision or of transformers as a `Detector`, in one line.

    A model of transformers is taken to want ImageNet's mean and std; another one: `QueryDetector(model, mean, std)`.

    Raises:
        TypeError: for a model that is neither; the message says what a detector of transformers would have.
    """
    if isinstance(model, FasterRCNN):
        return TorchvisionRCNN(model)
    if isinstance(model, RetinaNet):
        return TorchvisionRetinaNet(model)
    if type(model).__module__.startswith("torchvision."):
        raise TypeError(
            f"cannot wrap {type(model).__name__}: expected torchvision's FasterRCNN or RetinaNet, or a detector of "
            "transformers; for another model subclass sed.detectors.base.Detector"
        )
    return QueryDetector(model)


def build_detector(spec: DetectorSpec) -> TorchvisionDetector:
    """A detector with fresh weights.

    Raises:
        ValueError: where the anchor sizes do not fit the pyramid's levels.
    """
    two_stage = spec.architecture == "rcnn"
    if spec.backbone == "small":
        backbone: nn.Module = SmallFPN(spec.norm, spec.fpn_channels)
        levels, maps = 4, ["0", "1", "2", "3"]
    else:
        top = "pool" if two_stage else "p6p7"
        backbone = resnet_fpn(spec.depth, spec.norm, spec.freeze_at, spec.fpn_channels, top)
        levels, maps = 5, ["0", "1", "2", "3"]
    if len(spec.anchor_sizes) != levels:
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.SIZES has {len(spec.anchor_sizes)} lists; this backbone has {levels} levels"
        )
    ratios = spec.aspect_ratios if len(spec.aspect_ratios) > 1 else list(spec.aspect_ratios) * levels
    anchors = AnchorGenerator(tuple(map(tuple, spec.anchor_sizes)), tuple(map(tuple, ratios)))
    common = {
        "image_mean": [v / 255 for v in spec.pixel_mean],
        "image_std": [v / 255 for v in spec.pixel_std],
        "num_classes": spec.num_classes + 1,  # torchvision counts the background
    }
    if not two_stage:
        return TorchvisionRetinaNet(
            RetinaNet(
                backbone,
                anchor_generator=anchors,
                score_thresh=spec.score_threshold,
                nms_thresh=spec.nms_threshold,
                detections_per_img=spec.detections,
                topk_candidates=spec.dense_topk,
                **common,
            )
        )
    pool = MultiScaleRoIAlign(maps, spec.pool_resolution, spec.pool_sampling)
    head = TwoMLPHead(spec.fpn_channels * spec.pool_resolution**2, spec.fc_dim)
    predictor = FastRCNNPredictor(spec.fc_dim, common.pop("num_classes"))
    pre_train, pre_test, post_train, post_test = spec.rpn_topk
    return TorchvisionRCNN(
        FasterRCNN(
            backbone,
            rpn_anchor_generator=anchors,
            rpn_pre_nms_top_n_train=pre_train,
            rpn_pre_nms_top_n_test=pre_test,
            rpn_post_nms_top_n_train=post_train,
            rpn_post_nms_top_n_test=post_test,
            rpn_nms_thresh=spec.rpn_nms,
            rpn_batch_size_per_image=spec.rpn_batch,
            box_roi_pool=pool,
            box_head=head,
            box_predictor=predictor,
            box_batch_size_per_image=spec.region_batch,
            box_score_thresh=spec.score_threshold,
            box_nms_thresh=spec.nms_threshold,
            box_detections_per_img=spec.detections,
            **common,
        )
    )
