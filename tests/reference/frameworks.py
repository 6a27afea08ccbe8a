"""Test cases of the contract suite: a `Case` is one tiny detector and the framework's own ("stock") model beside it.

The checks themselves (tests/contract) are the same for all frameworks. A case computes with the framework itself what
they compare with: its anchors, decoded boxes, proposals and region scores, and the losses and detections of the stock
model, which gets its input in its own format. Results are in the convention of `sed.core.structures`.

Shape shorthand: see `sed.core.structures`; M all anchors of an image, B box rows a region (K, or 1 class-agnostic).
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from sed.core.structures import Detections, Images, LabeledBatch
from sed.detectors import DetectorSpec, build_detector
from sed.detectors.base import Detector, Features, Head
from tests.reference.detectors import SPECS


class Case(ABC):
    """One detector of one framework; K = 3.

    Attributes:
        name: the test's id.
        heads: those of its detector.
        untrained: patterns (fnmatch) of weights that get no gradient from the model's own loss.
        only_labeled: patterns of weights that get a gradient from its own loss alone, not from its predictions.
        mute: patterns of weights whose gradient may be 0 before the first step.
    """

    heads: frozenset[Head]
    untrained: tuple[str, ...] = ()
    only_labeled: tuple[str, ...] = ()
    mute: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def make(self, seed: int = 0) -> Detector:
        """The detector, with weights drawn from `seed`, that drops no detection for its score.

        The heads' weights are drawn larger than for training: with fresh weights all logits are 0 within 1e-5.
        """
        torch.manual_seed(seed)
        detector = self.build()
        for name, weight in detector.named_parameters():
            if "backbone" not in name and weight.dim() > 1:
                nn.init.kaiming_normal_(weight, nonlinearity="linear")
        return detector

    @abstractmethod
    def build(self) -> Detector:
        """The detector with fresh weights."""

    @abstractmethod
    def stock_losses(self, detector: Detector, batch: LabeledBatch, seed: int) -> dict[str, Tensor]:
        """The stock model's losses with the same weights, under our names; `seed` is set before its forward."""

    @abstractmethod
    def stock_detections(self, detector: Detector, images: Images) -> list[Detections]:
        """The stock model's inference with the same weights."""

    @abstractmethod
    def exported(self, folder: Path) -> tuple[Detector, nn.Module]:
        """A detector, and a stock model built without this project that has loaded its exported weights."""


class AnchorCase(Case):
    """A detector with a dense head, and maybe a region head.

    Attributes:
        box_rows: B.
        anchor_error: how far, in pixels, an anchor may lie from twice its partner on the half-size view.
    """

    box_rows = 3
    anchor_error = 0.0

    def __init__(self, name: str, *, two_stage: bool) -> None:
        super().__init__(name)
        self.two_stage = two_stage
        self.heads = frozenset({"dense", "region"} if two_stage else {"dense"})

    @abstractmethod
    def anchors(self, detector: Detector, features: Features) -> Tensor:
        """[M, 4], the framework's own generator's."""

    @abstractmethod
    def own_boxes(self, detector: Detector, features: Features) -> Tensor:
        """[N, M, 4]: every anchor as the framework decodes it from its own head on these maps."""

    @abstractmethod
    def own_proposals(self, detector: Detector, features: Features) -> list[Tensor]:
        """N tensors [P, 4]: what the framework's own first stage, in eval mode, makes of these maps."""

    @abstractmethod
    def own_regions(self, detector: Detector, features: Features, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Probabilities [R, K + 1], background last, and deltas [R, B, 4] of the framework's own second stage."""


LOSSES = {  # torchvision's names -> ours
    "loss_objectness": "dense_cls",
    "loss_rpn_box_reg": "dense_box",
    "loss_classifier": "region_cls",
    "loss_box_reg": "region_box",
    "classification": "dense_cls",
    "bbox_regression": "dense_box",
}


class TorchvisionCase(AnchorCase):
    """A `DetectorSpec` of `tests.reference.detectors`; torchvision rounds base anchors to whole pixels."""

    anchor_error = 1.0

    def __init__(self, name: str) -> None:
        super().__init__(name, two_stage=SPECS[name].architecture == "rcnn")

    def build(self) -> Detector:
        return build_detector(dataclasses.replace(SPECS[self.name], score_threshold=0.0))

    def anchors(self, detector: Any, features: Features) -> Tensor:
        generator = detector.model.rpn.anchor_generator if self.two_stage else detector.model.anchor_generator
        return generator(self._image_list(features), list(features.maps.values()))[0]

    def own_boxes(self, detector: Any, features: Features) -> Tensor:
        if self.two_stage:
            with results_of(detector.model.rpn.box_coder, "decode") as decoded:
                self.own_proposals(detector, features)
            return decoded[0].view(len(features.images), -1, 4)
        deltas = detector.model.head(list(features.maps.values()))["bbox_regression"]
        anchors = self.anchors(detector, features)
        return torch.stack([detector.model.box_coder.decode_single(d, anchors) for d in deltas])

    def own_proposals(self, detector: Any, features: Features) -> list[Tensor]:
        return detector.model.rpn(self._image_list(features), features.maps)[0]

    def own_regions(self, detector: Any, features: Features, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        heads = detector.model.roi_heads
        with results_of(heads.box_predictor, "forward") as outputs:
            heads(features.maps, proposals, list(features.images.sizes))
        scores, deltas = outputs[0]
        return scores.softmax(1).roll(-1, dims=1), deltas.view(len(deltas), -1, 4)[:, 1:]  # background was first

    def stock_losses(self, detector: Any, batch: LabeledBatch, seed: int) -> dict[str, Tensor]:
        targets = [{"boxes": t.boxes, "labels": t.classes + 1} for t in batch.targets]
        model = self._stock(detector).train()
        torch.manual_seed(seed)
        losses = model(self._inputs(batch.images), targets)
        return {LOSSES[name]: loss for name, loss in losses.items()}

    def stock_detections(self, detector: Any, images: Images) -> list[Detections]:
        rows = self._stock(detector).eval()(self._inputs(images))
        rows = [{name: value[r["labels"] > 0] for name, value in r.items()} for r in rows]  # 0 is no class
        return [Detections(r["boxes"], r["scores"], r["labels"] - 1) for r in rows]

    def exported(self, folder: Path) -> tuple[Detector, nn.Module]:
        if SPECS[self.name].backbone == "small":  # the backbone is ours; the model around it is torchvision's class
            detector, stock = self.make(), self.make(seed=1).model
        elif SPECS[self.name].backbone.startswith("timm:"):  # as above; tests/tools/test_examples.py has it without us
            detector, stock = self.make(), self.make(seed=1).model
        else:
            sizes = [[s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)] for s in (32, 64, 128, 256, 512)]  # the stock 9 a cell
            own = {} if self.two_stage else {"anchor_sizes": sizes}
            constructor = fasterrcnn_resnet50_fpn if self.two_stage else retinanet_resnet50_fpn
            spec = DetectorSpec(architecture=SPECS[self.name].architecture, num_classes=4, **own)
            detector = build_detector(spec)
            stock = constructor(weights=None, weights_backbone=None, num_classes=5)
        torch.save(detector.plain_state_dict(), folder / "model_final.pth")
        stock.load_state_dict(torch.load(folder / "model_final.pth", weights_only=True))
        return detector, stock

    def _stock(self, detector: Any) -> nn.Module:
        """The wrapped model without its wrapper, its resizing left out."""
        model = copy.deepcopy(detector.model)
        model.transform.resize = lambda image, target: (image, target)
        model.transform.size_divisible = detector.size_divisibility
        return model

    def _inputs(self, images: Images) -> list[Tensor]:
        return [image[:, :h, :w].float() / 255 for image, (h, w) in zip(images.tensor, images.sizes, strict=True)]

    def _image_list(self, features: Features) -> ImageList:
        return ImageList(features.images.tensor, list(features.images.sizes))


@contextmanager
def results_of(owner: Any, method: str) -> Iterator[list[Any]]:
    """What `owner.method` returns while the block runs, call by call."""
    original, results = getattr(owner, method), []

    def listen(*args: Any, **kwargs: Any) -> Any:
        results.append(original(*args, **kwargs))
        return results[-1]

    setattr(owner, method, listen)
    try:
        yield results
    finally:
        delattr(owner, method)
