"""Builds a torchvision detector from a `DetectorSpec`; `wrap` makes a `Detector` of a ready-built model."""

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
from sed.detectors.timm_backbone import PREFIX, TimmFPN
from sed.detectors.torchvision_models import TorchvisionDetector, TorchvisionRCNN, TorchvisionRetinaNet
from sed.options.model import ModelOptions
from sed.options.solver import Test

_M = ModelOptions()  # the defaults below are its


def _tuples(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, rows))


@dataclass(frozen=True)
class DetectorSpec:
    """All parameters of a torchvision detector; the defaults are the paper's Faster R-CNN R50-FPN.

    Attributes:
        architecture: "rcnn" or "retinanet".
        num_classes: K, without background.
        backbone: "resnet", "small", or "timm:NAME" (`sed.detectors.timm_backbone`).
        depth: of the ResNet.
        norm: "FrozenBN", "BN" or "GN".
        freeze_at: see `sed.detectors.backbones.resnet_fpn`.
        fpn_channels: channels of every pyramid level.
        fpn_norm: of the pyramid's convolutions, "" or "GN".
        anchor_sizes: one list a level, pixels (square root of the area).
        aspect_ratios: height / width; one list for all levels, or one a level.
        pixel_mean: RGB, 0..255.
        pixel_std: RGB, 0..255.
        rpn_topk: proposals kept (before NMS in training, in testing, after NMS in training, in testing).
        rpn_nms: IoU above which the weaker of two proposals is dropped.
        rpn_batch: anchors sampled an image for the supervised RPN loss.
        region_batch: proposals sampled an image for the supervised region loss.
        fc_dim: width of the region head's two layers.
        pool_resolution: side of RoIAlign's grid.
        pool_sampling: sampling points a bin and axis.
        score_threshold: detections below it are dropped.
        nms_threshold: IoU above which the weaker of two detections of a class is dropped.
        detections: the number kept of an image.
        dense_topk: of a one-stage detector, the candidates of a level before NMS.
    """

    architecture: str = "rcnn"
    num_classes: int = _M.roi_heads.num_classes
    backbone: str = "resnet"
    depth: int = _M.resnets.depth
    norm: str = _M.resnets.norm
    freeze_at: int = _M.backbone.freeze_at
    fpn_channels: int = _M.fpn.out_channels
    fpn_norm: str = _M.fpn.norm
    anchor_sizes: Sequence[Sequence[float]] = _tuples(_M.anchor_generator.sizes)
    aspect_ratios: Sequence[Sequence[float]] = _tuples(_M.anchor_generator.aspect_ratios)
    pixel_mean: Sequence[float] = tuple(_M.pixel_mean)
    pixel_std: Sequence[float] = tuple(_M.pixel_std)
    rpn_topk: tuple[int, int, int, int] = (
        _M.rpn.pre_nms_topk_train,
        _M.rpn.pre_nms_topk_test,
        _M.rpn.post_nms_topk_train,
        _M.rpn.post_nms_topk_test,
    )
    rpn_nms: float = _M.rpn.nms_thresh
    rpn_batch: int = _M.rpn.batch_size_per_image
    region_batch: int = _M.roi_heads.batch_size_per_image
    fc_dim: int = _M.roi_box_head.fc_dim
    pool_resolution: int = _M.roi_box_head.pooler_resolution
    pool_sampling: int = _M.roi_box_head.pooler_sampling_ratio
    score_threshold: float = _M.roi_heads.score_thresh_test
    nms_threshold: float = _M.roi_heads.nms_thresh_test
    detections: int = Test.detections_per_image
    dense_topk: int = _M.retinanet.topk_candidates_test


def wrap(model: nn.Module) -> Detector:
    """A `Detector` of a ready-built detection model of torchvision or transformers.

    A model of transformers gets pixels normalised by ImageNet's mean and std; for others: `QueryDetector(model, mean,
    std)`.

    Raises:
        TypeError: for any other model; the message names what it lacks.
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
        ValueError: where the anchor sizes do not fit the pyramid's levels; for a network that timm does not have.
    """
    two_stage = spec.architecture == "rcnn"
    top = "pool" if two_stage else "p6p7"
    levels, maps = 5, ["0", "1", "2", "3"]
    if spec.backbone == "small":
        backbone: nn.Module = SmallFPN(spec.norm, spec.fpn_channels, spec.fpn_norm)
        levels = 4
    elif spec.backbone.startswith(PREFIX):
        name = spec.backbone.removeprefix(PREFIX)
        backbone = TimmFPN(name, spec.norm, spec.freeze_at, spec.fpn_channels, top, spec.fpn_norm)
    else:
        backbone = resnet_fpn(spec.depth, spec.norm, spec.freeze_at, spec.fpn_channels, top, spec.fpn_norm)
    if len(spec.anchor_sizes) != levels:
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.SIZES has {len(spec.anchor_sizes)} lists; this backbone has {levels} levels"
        )
    ratios = spec.aspect_ratios if len(spec.aspect_ratios) > 1 else list(spec.aspect_ratios) * levels
    anchors = AnchorGenerator(_tuples(spec.anchor_sizes), _tuples(ratios))
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
