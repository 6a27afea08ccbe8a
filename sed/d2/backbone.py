"""Backbones: that of the digits benchmark under Detectron2's name, and torchvision's ResNet-18 weights.

Detectron2 has torchvision's ImageNet file for its ResNet-50 and none for the ResNet-18 of Tab. 5 and 8.
"""

from __future__ import annotations

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, ResNet
from torch import Tensor, nn

from sed.detectors.backbones import SmallFPN
from sed.detectors.weights import WeightsError, check_complete, imagenet_resnet

TORCHVISION_NAMES = (  # torchvision's -> Detectron2's
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


class SmallFPNBackbone(Backbone):
    """`SmallFPN` with Detectron2's interface: maps "p2" to "p5", strides 4 to 32."""

    def __init__(self, norm: str, out_channels: int) -> None:
        super().__init__()
        self.body = SmallFPN(norm, out_channels)
        self._shapes = {f"p{f}": ShapeSpec(channels=out_channels, stride=2**f) for f in range(2, 6)}

    @property
    def size_divisibility(self) -> int:
        """Every map's grid divides the image."""
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pixels [N, 3, H, W] -> the pyramid."""
        return dict(zip(self._shapes, self.body(x).values(), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return dict(self._shapes)


@BACKBONE_REGISTRY.register()
def build_small_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> SmallFPNBackbone:
    """From a config: MODEL.RESNETS.NORM and MODEL.FPN.OUT_CHANNELS; `input_shape` must have 3 channels."""
    if input_shape.channels != 3:
        raise ValueError(f"build_small_fpn_backbone: expected 3 input channels, got {input_shape.channels}")
    return SmallFPNBackbone(cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.OUT_CHANNELS)


def load_imagenet(detector: nn.Module, depth: int) -> None:
    """Fill the ResNet of `detector` with torchvision's ImageNet weights, as `MODEL.WEIGHTS imagenet` does natively.

    Raises:
        WeightsError: weights that cannot be had, or a backbone that is no such ResNet.
    """
    for module in detector.modules():
        if isinstance(module, ResNet):
            state = imagenet_resnet(depth, TORCHVISION_NAMES)
            check_complete(module.state_dict(), state, "MODEL.WEIGHTS imagenet", "backbone")
            module.load_state_dict(state, strict=False)
            return
    raise WeightsError("MODEL.WEIGHTS imagenet: this detector's backbone is no ResNet of Detectron2; name a file")
