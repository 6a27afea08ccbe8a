"""The digits benchmark's backbone (METHOD 12) under Detectron2's name: MODEL.BACKBONE.NAME build_small_fpn_backbone."""

from __future__ import annotations

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from sed.detectors.backbones import SmallFPN


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
