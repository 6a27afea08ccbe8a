"""Backbones: that of the digits benchmark and those of timm with Detectron2's interface, and ImageNet weights.

Detectron2 has torchvision's ImageNet file for its ResNet-50 and none for the ResNet-18 of Tab. 5 and 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, ResNet, RetinaNet
from torch import Tensor, nn

from sed.config import ConfigError
from sed.detectors.backbones import SmallFPN
from sed.detectors.timm_backbone import PREFIX, TimmFPN, levels
from sed.detectors.weights import WeightsError, check_complete, imagenet_resnet, imagenet_timm, load_body

TORCHVISION_NAMES = (  # torchvision's -> Detectron2's
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


class Pyramid(Backbone):
    """A backbone with a pyramid with Detectron2's interface: maps "p2", "p3", ...

    Args:
        body: pixels [N, 3, H, W] -> its maps by name, the finest first.
        levels: f of each map, of stride 2^f.
    """

    def __init__(self, body: nn.Module, levels: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self._shapes = {f"p{f}": ShapeSpec(channels=body.out_channels, stride=2**f) for f in levels}

    @property
    def size_divisibility(self) -> int:
        """Every map up to P5 has a grid that divides the image."""
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pixels [N, 3, H, W] -> the pyramid."""
        return dict(zip(self._shapes, self.body(x).values(), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return dict(self._shapes)


@BACKBONE_REGISTRY.register()
def build_small_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> Pyramid:
    """From a config: MODEL.RESNETS.NORM and MODEL.FPN; `input_shape` must have 3 channels."""
    _check_rgb(input_shape, "build_small_fpn_backbone")
    m = cfg.MODEL
    return Pyramid(SmallFPN(m.RESNETS.NORM, m.FPN.OUT_CHANNELS, m.FPN.NORM), range(2, 6))


def register_timm(name: str) -> None:
    """Make MODEL.BACKBONE.NAME `name`, "timm:NAME", known to Detectron2; `sed.d2.config.load_config` does."""
    if name in BACKBONE_REGISTRY:
        return

    def build(cfg: Any, input_shape: ShapeSpec) -> Pyramid:
        _check_rgb(input_shape, name)
        m = cfg.MODEL
        top = "p6p7" if issubclass(META_ARCH_REGISTRY.get(m.META_ARCHITECTURE), RetinaNet) else "pool"
        frozen, channels = m.BACKBONE.FREEZE_AT, m.FPN.OUT_CHANNELS
        try:
            body = TimmFPN(name.removeprefix(PREFIX), m.RESNETS.NORM, frozen, channels, top, m.FPN.NORM)
        except ValueError as error:  # parts that do not go together
            raise ConfigError(str(error)) from None
        return Pyramid(body, levels(top))

    build.__name__ = name
    BACKBONE_REGISTRY.register(build)


def _check_rgb(input_shape: ShapeSpec, name: str) -> None:
    if input_shape.channels != 3:
        raise ValueError(f"{name}: expected 3 input channels, got {input_shape.channels}")


def load_imagenet(detector: nn.Module, depth: int) -> None:
    """Fill the backbone of `detector` with the ImageNet weights that `MODEL.WEIGHTS imagenet` has natively.

    Raises:
        WeightsError: weights that cannot be had, or a backbone that is neither a ResNet nor timm's.
    """
    for module in detector.modules():
        if isinstance(module, TimmFPN):
            load_body(module.body, *imagenet_timm(module.name, detector.pixel_mean, detector.pixel_std))
            return
        if isinstance(module, ResNet):
            state = imagenet_resnet(depth, TORCHVISION_NAMES)
            check_complete(module.state_dict(), state, "MODEL.WEIGHTS imagenet", "backbone")
            module.load_state_dict(state, strict=False)
            return
    raise WeightsError(
        "MODEL.WEIGHTS imagenet: this detector's backbone is no ResNet of Detectron2 and none of timm; name a file"
    )
