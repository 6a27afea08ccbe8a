"""Detectron2's Faster R-CNN and RetinaNet as `Detector`s, by their names in MODEL.META_ARCHITECTURE.

Each is the stock class, with the stock weights' names, inference and supervised losses (`forward` is inherited), and
beside them the heads that the methods ask for: the class's own RPN, ROI heads, anchor generator and pooler, called in
the order of its own `forward`. What this file adds is the convention: Detectron2 takes pixels in INPUT.FORMAT (BGR by
default) and absolute boxes in `Instances`; its background is the last class, as here.

Shape shorthand: see `sed.core.structures`; B anchors a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet, detector_postprocess
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, RROIHeads, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from sed.core.structures import DenseLevel, DensePrediction, Detections, Images, LabeledBatch, RegionPrediction, Targets
from sed.core.views import valid_anchors
from sed.detectors.base import Detector, Features, check_sides, normalize

# Detectron2's names of the losses -> those of `Detector.supervised_losses`
RCNN_LOSSES = {
    "loss_rpn_cls": "dense_cls",
    "loss_rpn_loc": "dense_box",
    "loss_cls": "region_cls",
    "loss_box_reg": "region_box",
}
RETINANET_LOSSES = {"loss_cls": "dense_cls", "loss_box_reg": "dense_box"}


class Detectron2Detector(Detector):
    """What both share; mixed in before the stock class.

    Attributes:
        input_format: "RGB" or "BGR", the order of the stock class's pixels and of its mean.
    """

    input_format: str
    _cell_anchors: list[tuple[tuple[float, float], ...]]
    loss_names: dict[str, str]

    def to_inputs(self, batch: LabeledBatch | Images) -> list[dict[str, Any]]:
        """Detectron2's list of dicts: "image" [3, h, w] without padding and, for a labelled batch, "instances"."""
        images = batch if isinstance(batch, Images) else batch.images
        pixels = self._own_order(images.tensor)
        inputs: list[dict[str, Any]] = [
            {"image": image[:, :h, :w]} for image, (h, w) in zip(pixels, images.sizes, strict=True)
        ]
        if isinstance(batch, LabeledBatch):
            for row, targets, size in zip(inputs, batch.targets, images.sizes, strict=True):
                row["instances"] = Instances(size, gt_boxes=Boxes(targets.boxes), gt_classes=targets.classes)
        return inputs

    def supervised_losses(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """See `Detector.supervised_losses`; other losses of a subclass keep their own names."""
        with _storage():
            losses = self(self.to_inputs(batch))
        return {self.loss_names.get(name, name): loss for name, loss in losses.items()}

    def encode(self, images: Images) -> Features:
        """See `Detector.encode`. The padding becomes exactly 0, as Detectron2 has it."""
        check_sides(images, self.size_divisibility)
        own = Images(self._own_order(images.tensor), images.sizes)
        pixels = normalize(own, self.pixel_mean, self.pixel_std)
        return Features(self.backbone(pixels), Images(pixels, images.sizes))

    @torch.no_grad()
    def detect(self, images: Images) -> list[Detections]:
        """See `Detector.detect`: the stock inference."""
        results = [row["instances"] for row in self(self.to_inputs(images))]
        return [Detections(r.pred_boxes.tensor, r.scores, r.pred_classes) for r in results]

    def plain_state_dict(self) -> dict[str, Tensor]:
        """See `Detector.plain_state_dict`: the names are the stock class's already."""
        return self.state_dict()

    def _own_order(self, pixels: Tensor) -> Tensor:
        return pixels if self.input_format == "RGB" else pixels.flip(1)

    def _size_divisibility(self, levels: Sequence[str]) -> int:
        shapes: dict[str, ShapeSpec] = self.backbone.output_shape()
        return max(shapes[name].stride for name in levels)

    def _levels(self, features: Features, names: Sequence[str], logits: list[Tensor], deltas: list[Tensor]):
        """One `DenseLevel` a map; logits [N, A, C] and deltas [N, A, 4] of each."""
        levels = []
        for name, scores, boxes, anchors in zip(names, logits, deltas, self._cell_anchors, strict=True):
            rows, columns = (int(side) for side in features.maps[name].shape[-2:])
            level = round(math.log2(features.images.padded_size[0] / rows))
            per_cell = scores.shape[1] // (rows * columns)
            valid = valid_anchors(features.images.sizes, level, (rows, columns), per_cell, scores.device)
            levels.append(DenseLevel(level, (rows, columns), scores, boxes, valid, anchors))
        return DensePrediction(tuple(levels))


@META_ARCH_REGISTRY.register()
class ScaleConsistentRCNN(Detectron2Detector, GeneralizedRCNN):
    """`GeneralizedRCNN` with the heads "dense" (its RPN) and "region"; FPN or one map (C4)."""

    heads = frozenset({"dense", "region"})
    loss_names = RCNN_LOSSES

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """As `GeneralizedRCNN`; also from a config.

        Raises:
            TypeError: for parts whose raw outputs are not those of the paper's detector.
        """
        super().__init__(**kwargs)
        self.input_format = self.input_format or "BGR"
        heads = self.roi_heads
        _check_parts(self.proposal_generator, heads)
        pooler = heads.pooler if isinstance(heads, Res5ROIHeads) else heads.box_pooler
        pooler.register_forward_pre_hook(_pool_in_float32)
        self.num_classes = heads.num_classes
        region = heads.box_predictor.box2box_transform
        self.box_coder_weights = {"dense": self.proposal_generator.box2box_transform.weights, "region": region.weights}
        self.size_divisibility = self._size_divisibility([*self.proposal_generator.in_features, *heads.in_features])
        self._cell_anchors = _sides(self.proposal_generator.anchor_generator)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """The arguments that the config describes."""
        return GeneralizedRCNN.from_config(cfg)

    @torch.no_grad()
    def detect_from(self, features: Features, proposals: Sequence[Tensor]) -> list[Detections]:
        """See `Detector.detect_from`: the stock inference after its RPN."""
        rows = zip(features.images.sizes, proposals, strict=True)
        given = [Instances(size, proposal_boxes=Boxes(boxes)) for size, boxes in rows]
        found, _ = self.roi_heads(_image_list(features), features.maps, given, None)
        results = [detector_postprocess(row, *row.image_size) for row in found]  # drops what has no extent
        return [Detections(r.pred_boxes.tensor, r.scores, r.pred_classes) for r in results]

    def dense(self, features: Features) -> DensePrediction:
        """See `Detector.dense`: the RPN, C = 1."""
        names = self.proposal_generator.in_features
        objectness, deltas = self.proposal_generator.rpn_head([features.maps[name] for name in names])
        logits = [_to_rows(o, 1) for o in objectness]  # [N, B, rows, columns] -> [N, A, 1]
        return self._levels(features, names, logits, [_to_rows(d, 4) for d in deltas])

    @torch.no_grad()
    def propose(self, features: Features, dense: DensePrediction, limit: int) -> list[Tensor]:
        """See `Detector.propose`: the RPN's own decoding, NMS and top-k."""
        rpn = self.proposal_generator
        anchors = rpn.anchor_generator([features.maps[name] for name in rpn.in_features])
        logits = [level.logits.squeeze(-1).float() for level in dense.levels]
        deltas = [level.deltas.float() for level in dense.levels]
        proposals = rpn.predict_proposals(anchors, logits, deltas, list(features.images.sizes))
        return [p.proposal_boxes.tensor[:limit] for p in proposals]

    def proposal_losses(self, features: Features, targets: Sequence[Targets]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """See `Detector.proposal_losses`."""
        found = [
            Instances(size, gt_boxes=Boxes(t.boxes), gt_classes=t.classes)
            for size, t in zip(features.images.sizes, targets, strict=True)
        ]
        with _storage():
            proposals, losses = self.proposal_generator(_image_list(features), features.maps, found)
        renamed = {self.loss_names[name]: loss for name, loss in losses.items()}
        return renamed, [p.proposal_boxes.tensor for p in proposals]

    def regions(self, features: Features, proposals: Sequence[Tensor]) -> RegionPrediction:
        """See `Detector.regions`."""
        heads = self.roi_heads
        maps = [features.maps[name] for name in heads.in_features]
        boxes = [Boxes(p) for p in proposals]
        if isinstance(heads, Res5ROIHeads):
            pooled = heads.res5(heads.pooler(maps, boxes)).mean(dim=(2, 3))
        else:
            pooled = heads.box_head(heads.box_pooler(maps, boxes))
        scores, deltas = heads.box_predictor(pooled)  # [R, K + 1] background last, [R, 4 K] or [R, 4]
        return RegionPrediction(
            scores, deltas.view(len(deltas), deltas.shape[1] // 4, 4), tuple(len(p) for p in proposals)
        )


@META_ARCH_REGISTRY.register()
class ScaleConsistentRetinaNet(Detectron2Detector, RetinaNet):
    """`RetinaNet` with the head "dense", C = K."""

    heads = frozenset({"dense"})
    loss_names = RETINANET_LOSSES

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """As `RetinaNet`; also from a config."""
        super().__init__(**kwargs)
        self.size_divisibility = self._size_divisibility(self.head_in_features)
        self._cell_anchors = _sides(self.anchor_generator)
        self.box_coder_weights = {"dense": self.box2box_transform.weights}

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """The arguments that the config describes."""
        return RetinaNet.from_config(cfg)

    def supervised_losses(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """See `Detector.supervised_losses`."""
        # Detectron2's focal loss is scripted. The optimizing executor of TorchScript changes the kernels after some
        # calls, and with them the last bits, so that a resumed run would part from an uninterrupted one
        with torch.jit.optimized_execution(False):
            return super().supervised_losses(batch)

    def dense(self, features: Features) -> DensePrediction:
        """See `Detector.dense`."""
        names = self.head_in_features
        logits, deltas = self.head([features.maps[name] for name in names])
        rows = [_to_rows(values, self.num_classes) for values in logits]
        return self._levels(features, names, rows, [_to_rows(d, 4) for d in deltas])


def _check_parts(proposal_generator: nn.Module | None, heads: nn.Module) -> None:
    if isinstance(heads, (CascadeROIHeads, RROIHeads)) or not isinstance(heads, (StandardROIHeads, Res5ROIHeads)):
        raise TypeError(
            f"MODEL.ROI_HEADS.NAME {type(heads).__name__}: ScaleConsistentRCNN needs one box head, "
            "StandardROIHeads or Res5ROIHeads"
        )
    if not isinstance(proposal_generator, RPN) or proposal_generator.anchor_generator.box_dim != 4:  # 5: rotated
        name = "PrecomputedProposals" if proposal_generator is None else type(proposal_generator).__name__
        raise TypeError(f"MODEL.PROPOSAL_GENERATOR.NAME {name}: ScaleConsistentRCNN needs an RPN")
    for key, there in (("MASK_ON", "mask_on"), ("KEYPOINT_ON", "keypoint_on")):
        if getattr(heads, there, False):
            raise TypeError(f"MODEL.{key}: mask and keypoint heads are not supported, only boxes; set it to False")
    if getattr(heads.box_predictor, "use_sigmoid_ce", False):
        raise TypeError("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE: ScaleConsistentRCNN needs the softmax classifier")


def _sides(generator: nn.Module) -> list[tuple[tuple[float, float], ...]]:
    """(width, height) of each anchor of a cell, map by map; read once, while the model is built."""
    cells = [(boxes[:, 2:] - boxes[:, :2]).tolist() for boxes in generator.cell_anchors]  # [B, 4] xyxy around 0
    return [tuple((width, height) for width, height in rows) for rows in cells]


def _pool_in_float32(_pooler: nn.Module, inputs: tuple[list[Tensor], list[Boxes]]) -> tuple[list[Tensor], list[Boxes]]:
    """Detectron2 rounds the boxes to the maps' dtype: under autocast by up to 4 pixels (bfloat16, 1000 pixels)."""
    maps, boxes = inputs
    return [values.float() for values in maps], boxes


def _image_list(features: Features) -> ImageList:
    return ImageList(features.images.tensor, list(features.images.sizes))


def _to_rows(values: Tensor, width: int) -> Tensor:
    """A head's map [N, B x width, rows, columns] as [N, rows x columns x B, width]."""
    n, _, rows, columns = values.shape
    return values.view(n, -1, width, rows, columns).permute(0, 3, 4, 1, 2).reshape(n, -1, width)


def _storage() -> AbstractContextManager[Any]:
    """Detectron2's losses write scalars to the present EventStorage; outside of its trainers there is none."""
    try:
        get_event_storage()
    except AssertionError:
        return EventStorage()
    return nullcontext()
