"""torchvision's Faster R-CNN and RetinaNet behind the `Detector` interface.

Nothing of theirs is rewritten: heads, anchors, NMS, RoIAlign and losses are the model's own modules, called in the
order of its own `forward`. What this file adds is the convention (background last, pixels 0..255, one padded frame)
and the access to the heads' raw outputs.

Shape shorthand: see `sed.core.structures`; B anchors a cell, M all anchors of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList

from sed.core.structures import DenseLevel, DensePrediction, Detections, Images, LabeledBatch, RegionPrediction, Targets
from sed.core.views import valid_anchors
from sed.detectors.base import Detector, Features, check_sides, normalize


class TorchvisionDetector(Detector):
    """What both adapters share: normalisation, the backbone pass and the layout of a dense head's levels.

    Args:
        model: a ready-built torchvision detection model; it stays the owner of every weight.
        size_divisibility: the largest stride of its pyramid; measured with one small forward where None.
    """

    def __init__(self, model: FasterRCNN | RetinaNet, size_divisibility: int | None = None) -> None:
        super().__init__()
        self.model = model
        mean = torch.tensor(model.transform.image_mean) * 255
        std = torch.tensor(model.transform.image_std) * 255
        self.register_buffer("pixel_mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(1, 3, 1, 1), persistent=False)
        self.size_divisibility = size_divisibility or self._largest_stride()
        self._cell_anchors = _nominal_anchors(self._anchor_generator())

    @torch.no_grad()
    def _largest_stride(self) -> int:
        side = 256
        was_training = self.model.backbone.training
        probe = torch.zeros((1, 3, side, side), device=self.pixel_mean.device)
        maps = self.model.backbone.eval()(probe)
        self.model.backbone.train(was_training)
        maps = maps if isinstance(maps, dict) else {"0": maps}
        return side // min(m.shape[-1] for m in maps.values())

    def plain_state_dict(self) -> dict[str, Tensor]:
        """See `Detector`; the names are those of the wrapped torchvision model."""
        return self.model.state_dict()

    def encode(self, images: Images) -> Features:
        """See `Detector.encode`. Pixels are normalised here and padding becomes exactly 0, as torchvision has it."""
        check_sides(images, self.size_divisibility)
        pixels = normalize(images, self.pixel_mean, self.pixel_std)
        maps = self.model.backbone(pixels)
        if not isinstance(maps, dict):
            maps = {"0": maps}
        return Features(maps, Images(pixels, images.sizes))

    def _image_list(self, features: Features) -> ImageList:
        return ImageList(features.images.tensor, list(features.images.sizes))

    def _anchors(self, features: Features) -> list[Tensor]:
        """N tensors [M, 4], levels one after the other, each in (row, column, anchor) order."""
        generator = self._anchor_generator()
        return generator(self._image_list(features), list(features.maps.values()))

    def _anchor_generator(self) -> nn.Module:
        return self.model.anchor_generator

    def _level(self, index: int, features: Features, grid_map: Tensor, logits: Tensor, deltas: Tensor) -> DenseLevel:
        rows, columns = int(grid_map.shape[-2]), int(grid_map.shape[-1])
        level = round(math.log2(features.images.padded_size[0] / rows))
        per_cell = logits.shape[1] // (rows * columns)
        valid = valid_anchors(features.images.sizes, level, (rows, columns), per_cell, logits.device)
        return DenseLevel(level, (rows, columns), logits, deltas, valid, self._cell_anchors[index])


def _nominal_anchors(generator: nn.Module) -> list[tuple[tuple[float, float], ...]]:
    """(width, height) of each anchor of a cell, map by map, in torchvision's order: ratio by ratio, then size.

    Its own `cell_anchors` are rounded to whole pixels.
    """
    roots = [[math.sqrt(ratio) for ratio in ratios] for ratios in generator.aspect_ratios]  # ratio: height / width
    rows = zip(generator.sizes, roots, strict=True)
    return [tuple((size / root, size * root) for root in by_map for size in sizes) for sizes, by_map in rows]


def _targets(targets: Sequence[Targets]) -> list[dict[str, Tensor]]:
    return [{"boxes": t.boxes, "labels": t.classes + 1} for t in targets]  # torchvision's background is 0


def _detections(results: Sequence[dict[str, Tensor]]) -> list[Detections]:
    return [Detections(r["boxes"], r["scores"], r["labels"] - 1) for r in results]


class TorchvisionRCNN(TorchvisionDetector):
    """A `torchvision.models.detection.FasterRCNN`: heads "dense" (its RPN) and "region"."""

    heads = frozenset({"dense", "region"})

    def __init__(self, model: FasterRCNN, size_divisibility: int | None = None) -> None:
        if model.roi_heads.has_mask() or model.roi_heads.has_keypoint():
            raise TypeError(f"{type(model).__name__}: mask and keypoint heads are not supported, only boxes")
        super().__init__(model, size_divisibility)
        self.num_classes = model.roi_heads.box_predictor.cls_score.out_features - 1
        self.box_coder_weights = {"dense": model.rpn.box_coder.weights, "region": model.roi_heads.box_coder.weights}

    def _anchor_generator(self) -> nn.Module:
        return self.model.rpn.anchor_generator

    def encode(self, images: Images) -> Features:
        """See `TorchvisionDetector.encode`."""
        features = super().encode(images)
        pool = self.model.roi_heads.box_roi_pool
        if pool.scales is None:
            # torchvision infers the maps' scales on the first call, from whatever sizes it is given then; the padded
            # size is the only one for which that is exact.
            no_boxes = [features.images.tensor.new_zeros((0, 4))] * len(images)
            pool(features.maps, no_boxes, [images.padded_size] * len(images))
        return features

    def supervised_losses(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """See `Detector.supervised_losses`."""
        features = self.encode(batch.images.pad_to_multiple(self.size_divisibility))
        targets = _targets(batch.targets)
        proposals, rpn = self.model.rpn(self._image_list(features), features.maps, targets)
        _, box = self.model.roi_heads(features.maps, proposals, list(features.images.sizes), targets)
        return {
            "dense_cls": rpn["loss_objectness"],
            "dense_box": rpn["loss_rpn_box_reg"],
            "region_cls": box["loss_classifier"],
            "region_box": box["loss_box_reg"],
        }

    def dense(self, features: Features) -> DensePrediction:
        """See `Detector.dense`: the RPN, C = 1."""
        maps = list(features.maps.values())
        objectness, deltas = self.model.rpn.head(maps)  # [N, B, rows, columns], [N, 4 B, rows, columns]
        levels = []
        for index, (o, d) in enumerate(zip(objectness, deltas, strict=True)):
            n, b, rows, columns = o.shape
            logits = o.permute(0, 2, 3, 1).reshape(n, -1, 1)  # [N, A, 1]
            boxes = d.view(n, b, 4, rows, columns).permute(0, 3, 4, 1, 2).reshape(n, -1, 4)  # [N, A, 4]
            levels.append(self._level(index, features, o, logits, boxes))
        return DensePrediction(tuple(levels))

    @torch.no_grad()
    def propose(self, features: Features, dense: DensePrediction, limit: int) -> list[Tensor]:
        """See `Detector.propose`: the RPN's own decoding, NMS and top-k."""
        rpn = self.model.rpn
        logits = torch.cat([level.logits for level in dense.levels], dim=1)  # [N, M, 1]
        deltas = torch.cat([level.deltas for level in dense.levels], dim=1).flatten(0, 1)  # [N M, 4]
        boxes = rpn.box_coder.decode(deltas.float(), self._anchors(features)).view(len(logits), -1, 4)  # [N, M, 4]
        per_level = [level.logits.shape[1] for level in dense.levels]
        proposals, _ = rpn.filter_proposals(boxes, logits.float(), list(features.images.sizes), per_level)
        return [p[:limit] for p in proposals]

    def proposal_losses(self, features: Features, targets: Sequence[Targets]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """See `Detector.proposal_losses`."""
        proposals, rpn = self.model.rpn(self._image_list(features), features.maps, _targets(targets))
        return {"dense_cls": rpn["loss_objectness"], "dense_box": rpn["loss_rpn_box_reg"]}, proposals

    def regions(self, features: Features, proposals: Sequence[Tensor]) -> RegionPrediction:
        """See `Detector.regions`."""
        heads = self.model.roi_heads
        pooled = heads.box_roi_pool(features.maps, list(proposals), list(features.images.sizes))
        scores, deltas = heads.box_predictor(heads.box_head(pooled))  # [R, K + 1], [R, 4 (K + 1)] or [R, 4]
        logits = torch.cat([scores[:, 1:], scores[:, :1]], dim=1)  # background to the end
        boxes = deltas.view(deltas.shape[0], deltas.shape[1] // 4, 4)
        if boxes.shape[1] > 1:
            boxes = boxes[:, 1:]  # the background has no box
        return RegionPrediction(logits, boxes, tuple(len(p) for p in proposals))

    @torch.no_grad()
    def detect(self, images: Images) -> list[Detections]:
        """See `Detector.detect`."""
        features = self.encode(images.pad_to_multiple(self.size_divisibility))
        proposals, _ = self.model.rpn(self._image_list(features), features.maps)
        return self.detect_from(features, proposals)

    @torch.no_grad()
    def detect_from(self, features: Features, proposals: Sequence[Tensor]) -> list[Detections]:
        """See `Detector.detect_from`."""
        results, _ = self.model.roi_heads(features.maps, list(proposals), list(features.images.sizes))
        return _detections(results)


class TorchvisionRetinaNet(TorchvisionDetector):
    """A `torchvision.models.detection.RetinaNet`: head "dense", C = K.

    torchvision gives its sigmoid classifier a channel for label 0, which no box ever has; it is left out here.
    """

    heads = frozenset({"dense"})

    def __init__(self, model: RetinaNet, size_divisibility: int | None = None) -> None:
        super().__init__(model, size_divisibility)
        self.num_classes = model.head.classification_head.num_classes - 1
        self.box_coder_weights = {"dense": model.head.regression_head.box_coder.weights}

    def supervised_losses(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """See `Detector.supervised_losses`."""
        features = self.encode(batch.images.pad_to_multiple(self.size_divisibility))
        outputs = self.model.head(list(features.maps.values()))
        losses = self.model.compute_loss(_targets(batch.targets), outputs, self._anchors(features))
        return {"dense_cls": losses["classification"], "dense_box": losses["bbox_regression"]}

    def _per_level(self, features: Features) -> tuple[dict[str, tuple[Tensor, ...]], list[int]]:
        """The head's outputs split by level, and the anchors of each level."""
        maps = list(features.maps.values())
        outputs = self.model.head(maps)  # cls_logits [N, M, K + 1], bbox_regression [N, M, 4]
        cells = [m.shape[-2] * m.shape[-1] for m in maps]
        per_cell = outputs["cls_logits"].shape[1] // sum(cells)
        counts = [c * per_cell for c in cells]
        return {name: value.split(counts, dim=1) for name, value in outputs.items()}, counts

    def dense(self, features: Features) -> DensePrediction:
        """See `Detector.dense`."""
        split, _ = self._per_level(features)
        rows = zip(features.maps.values(), split["cls_logits"], split["bbox_regression"], strict=True)
        levels = [self._level(i, features, m, logits[..., 1:], deltas) for i, (m, logits, deltas) in enumerate(rows)]
        return DensePrediction(tuple(levels))

    @torch.no_grad()
    def detect(self, images: Images) -> list[Detections]:
        """See `Detector.detect`."""
        features = self.encode(images.pad_to_multiple(self.size_divisibility))
        split, counts = self._per_level(features)
        anchors = [list(a.split(counts)) for a in self._anchors(features)]
        outputs = {name: list(levels) for name, levels in split.items()}
        found = self.model.postprocess_detections(outputs, anchors, list(features.images.sizes))
        real = [row["labels"].nonzero().squeeze(1) for row in found]  # channel 0 may fire before it has learned
        rows = zip(found, real, strict=True)
        return _detections([{name: value[keep] for name, value in row.items()} for row, keep in rows])
