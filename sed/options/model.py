"""The options of the detector: section MODEL, with Detectron2's names wherever it has one."""

from __future__ import annotations

from dataclasses import dataclass

from sed.options.option import option, section

ARCHITECTURES = ("ScaleConsistentRCNN", "ScaleConsistentRetinaNet", "ScaleConsistentDETR")


@dataclass(frozen=True)
class Backbone:
    """MODEL.BACKBONE."""

    name: str = option(
        "build_resnet_fpn_backbone",
        "or build_small_fpn_backbone, that of the digits benchmark (docs/method.md 12), or timm:NAME, of timm",
    )
    freeze_at: int = option(2, "0: nothing is frozen, 1: the stem, 2: stem and first stage, ...", low=0, high=5)


@dataclass(frozen=True)
class ResNets:
    """MODEL.RESNETS."""

    depth: int = option(50, "depth of the ResNet", choices=(18, 34, 50, 101, 152))
    norm: str = option(
        "FrozenBN", "GN when training from scratch; of timm's networks FrozenBN or BN", choices=("FrozenBN", "BN", "GN")
    )


@dataclass(frozen=True)
class FPN:
    """MODEL.FPN."""

    out_channels: int = option(256, "channels of every pyramid level", low=1)
    norm: str = option("", "of the pyramid's convolutions; GN under maps of very different sizes", choices=("", "GN"))


@dataclass(frozen=True)
class AnchorGenerator:
    """MODEL.ANCHOR_GENERATOR."""

    sizes: list[list[float]] = option(
        [[32], [64], [128], [256], [512]],
        "square roots of the anchors' areas, pixels; one list a level",
        low=1,
        count=(1, 10),
    )
    aspect_ratios: list[list[float]] = option(
        [[0.5, 1.0, 2.0]], "height / width; one list for all levels, or one a level", low=0.01, high=100, count=(1, 10)
    )


@dataclass(frozen=True)
class RPN:
    """MODEL.RPN."""

    pre_nms_topk_train: int = option(2000, "proposals of a level before NMS, in training", low=1)
    pre_nms_topk_test: int = option(1000, "the same in eval mode", low=1)
    post_nms_topk_train: int = option(1000, "proposals of an image after NMS, in training", low=1)
    post_nms_topk_test: int = option(1000, "the same in eval mode", low=1)
    nms_thresh: float = option(0.7, "IoU above which the weaker proposal is dropped", low=0, high=1)
    batch_size_per_image: int = option(256, "anchors sampled for the RPN's supervised loss", low=1)


@dataclass(frozen=True)
class ROIHeads:
    """MODEL.ROI_HEADS."""

    num_classes: int = option(80, "K, classes without background", low=1)
    batch_size_per_image: int = option(512, "proposals sampled for the region head's supervised loss", low=1)
    score_thresh_test: float = option(0.05, "detections with a lower score are dropped", low=0, high=1)
    nms_thresh_test: float = option(0.5, "IoU above which the weaker detection of a class is dropped", low=0, high=1)


@dataclass(frozen=True)
class ROIBoxHead:
    """MODEL.ROI_BOX_HEAD."""

    fc_dim: int = option(1024, "width of its two layers", low=1)
    pooler_resolution: int = option(7, "side of RoIAlign's grid", low=1)
    pooler_sampling_ratio: int = option(2, "RoIAlign's sampling points a bin and axis; 0: as many as fit", low=0)


@dataclass(frozen=True)
class RetinaNet:
    """MODEL.RETINANET."""

    num_classes: int = option(80, "K", low=1)
    score_thresh_test: float = option(0.05, "detections with a lower score are dropped", low=0, high=1)
    nms_thresh_test: float = option(0.5, "IoU above which the weaker detection of a class is dropped", low=0, high=1)
    topk_candidates_test: int = option(1000, "candidates of a level before NMS", low=1)


@dataclass(frozen=True)
class DETR:
    """MODEL.DETR, the DETR family of `transformers`; it also reads WEIGHTS, PIXEL_* and BACKBONE.FREEZE_AT of MODEL."""

    config: str = option("", "which model: a config.json, a folder with one, or a name on the Hugging Face hub")
    num_classes: int = option(80, "K", low=1)


@dataclass(frozen=True)
class ModelOptions:
    """The detector."""

    meta_architecture: str = option(
        "ScaleConsistentRCNN", "Faster R-CNN | RetinaNet | DETR family", choices=ARCHITECTURES
    )
    device: str = option("auto", "auto: cuda where there is one | cuda | cpu")
    weights: str = option("", "'' (from scratch) | imagenet (backbone) | coco (detector) | a local file")
    pixel_mean: list[float] = option([123.675, 116.28, 103.53], "mean of the input; RGB", low=0, high=255, count=(3, 3))
    pixel_std: list[float] = option(
        [58.395, 57.12, 57.375], "standard deviation, likewise", low=0.001, high=255, count=(3, 3)
    )
    backbone: Backbone = section(Backbone)
    resnets: ResNets = section(ResNets)
    fpn: FPN = section(FPN)
    anchor_generator: AnchorGenerator = section(AnchorGenerator)
    rpn: RPN = section(RPN)
    roi_heads: ROIHeads = section(ROIHeads)
    roi_box_head: ROIBoxHead = section(ROIBoxHead)
    retinanet: RetinaNet = section(RetinaNet)
    detr: DETR = section(DETR)
