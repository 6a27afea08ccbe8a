"""The DETR family of Hugging Face `transformers` as a Detectron2 meta-architecture.

The detector is the adapter of `sed.detectors.detr`, the same on both engines. What this file adds is Detectron2's side:
a list of dicts goes in, losses or `Instances` come out; pixels and MODEL.PIXEL_* are in the order of INPUT.FORMAT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from sed.config import ConfigError
from sed.core.structures import Images, LabeledBatch, Targets
from sed.detectors.detr import IMAGENET_MEAN, IMAGENET_STD, QueryDetector
from sed.detectors.detr_build import build_model as transformers_model

# Names of `Detector.supervised_losses` -> those that Detectron2's own detectors use
LOSSES = {"query_cls": "loss_cls", "query_box": "loss_box_reg"}
_PREFIX = "model."  # of the wrapped model's names within ours


@META_ARCH_REGISTRY.register()
class ScaleConsistentDETR(QueryDetector):
    """`QueryDetector` with Detectron2's inputs and outputs.

    Attributes:
        input_format: "RGB" or "BGR", the order of the inputs' channels. The buffers `pixel_mean` and `pixel_std` are
            RGB, as the wrapped model is.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
        input_format: str = "RGB",
        detections: int = 100,
    ) -> None:
        """Around a ready-built model; or, given a config alone, around what MODEL.DETR describes, with fresh weights.

        Args:
            model: of the family, see `QueryDetector`.
            pixel_mean: 0..255, in the order of `input_format`.
            pixel_std: likewise.
            input_format: see the class.
            detections: kept an image.

        Raises:
            ConfigError: for a config that describes no detector, or another INPUT.FORMAT.
            NotADetrError: for a model that lacks what the adapter needs.
        """
        if input_format not in ("RGB", "BGR"):
            raise ConfigError(f"INPUT.FORMAT is {input_format!r}; ScaleConsistentDETR takes RGB or BGR")
        order = 1 if input_format == "RGB" else -1
        super().__init__(model, list(pixel_mean)[::order], list(pixel_std)[::order], detections)
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """The arguments that the config describes."""
        m = cfg.MODEL
        try:
            model = transformers_model(m.DETR.CONFIG, m.DETR.NUM_CLASSES, m.BACKBONE.FREEZE_AT)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return {
            "model": model,
            "pixel_mean": m.PIXEL_MEAN,
            "pixel_std": m.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        """Where the detector is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """As Detectron2's meta-architectures.

        Args:
            batched_inputs: one dict an image: "image" [3, h, w] in 0..255; in training "instances" with gt_boxes and
                gt_classes; in eval mode "height" and "width", the size that results refer to (default: the image's).

        Returns:
            In training {"loss_cls", "loss_box_reg"}, whose sum is the library's own loss; in eval mode one
            {"instances": Instances} an image with pred_boxes, scores and pred_classes, best first.
        """
        pixels = [row["image"].to(self.device) for row in batched_inputs]
        images = Images.from_list(pixels if self.input_format == "RGB" else [image.flip(0) for image in pixels])
        if self.training:
            assert "instances" in batched_inputs[0], "Instance annotations are missing in training!"
            truth = [row["instances"] for row in batched_inputs]
            targets = tuple(Targets(t.gt_boxes.tensor.float(), t.gt_classes).to(self.device) for t in truth)
            losses = self.supervised_losses(LabeledBatch(images, targets))
            return {LOSSES[name]: loss for name, loss in losses.items()}
        results = []
        for row, found, (h, w) in zip(batched_inputs, self.detect(images), images.sizes, strict=True):
            own = Instances((h, w), pred_boxes=Boxes(found.boxes), scores=found.scores, pred_classes=found.classes)
            results.append({"instances": detector_postprocess(own, row.get("height", h), row.get("width", w))})
        return results

    def own_names(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A state_dict of this detector, or of the wrapped model alone, under the names of this detector."""
        own, longer = self.state_dict().keys(), {f"{_PREFIX}{name}": value for name, value in state.items()}
        return longer if len(longer.keys() & own) > len(state.keys() & own) else state

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module` has it; also takes the names of `plain_state_dict`, which exported files have.

        So Detectron2's own `DetectionCheckpointer` and `DefaultPredictor` load those files.
        """
        return super().load_state_dict(self.own_names(state_dict), *args, **kwargs)
