"""Backbones with a feature pyramid, assembled from torchvision's own blocks.

`resnet_fpn` is the paper's (ResNet-18 or 50, P2-P6 or P3-P7); `SmallFPN` is the from-scratch backbone of the digits
benchmark (docs/method.md 12): basic blocks of 32-64-96-128 channels behind a stem of 16, P2-P5.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

STAGES = ("layer1", "layer2", "layer3", "layer4")


def norm_layer(kind: str) -> Callable[[int], nn.Module]:
    """A function channels -> normalisation layer: "FrozenBN" (docs/method.md 9), "BN" or "GN" (from scratch)."""
    layers: dict[str, Callable[[int], nn.Module]] = {
        "FrozenBN": FrozenBatchNorm2d,
        "BN": nn.BatchNorm2d,
        "GN": lambda channels: nn.GroupNorm(8 if channels < 64 else 32, channels),
    }
    return layers[kind]


def pyramid_norm(kind: str) -> Callable[[int], nn.Module] | None:
    """A function channels -> normalisation layer of a pyramid's convolutions: "" (none) or "GN"."""
    return norm_layer(kind) if kind else None


def top_levels(top: str, channels: int) -> ExtraFPNBlock:
    """What a pyramid has above its backbone's maps: "pool" (P6 of P5, for an RPN) or "p6p7" (one-stage detectors)."""
    return LastLevelMaxPool() if top == "pool" else LastLevelP6P7(channels, channels)


def resnet_fpn(
    depth: int, norm: str, freeze_at: int, out_channels: int, top: str, fpn_norm: str = ""
) -> BackboneWithFPN:
    """ResNet with a feature pyramid.

    Args:
        depth: 18, 34, 50 or 101.
        norm: of the ResNet, see `norm_layer`.
        freeze_at: 0 trains all, 1 freezes the stem, 2 stem and first stage, ... 5 everything.
        out_channels: channels of every pyramid level.
        top: "pool" (P2-P6, for an RPN) or "p6p7" (P3-P7, for one-stage detectors).
        fpn_norm: see `pyramid_norm`.
    """
    body = getattr(resnet, f"resnet{depth}")(weights=None, norm_layer=norm_layer(norm))
    frozen = (("conv1", "bn1"), *((stage,) for stage in STAGES))[:freeze_at]
    for name in (name for group in frozen for name in group):
        getattr(body, name).requires_grad_(False)
    first = 1 if top == "pool" else 2
    stages = range(first, 5)
    widest = body.inplanes  # channels of layer4
    channels = [widest // 2 ** (4 - stage) for stage in stages]
    names = {f"layer{stage}": str(i) for i, stage in enumerate(stages)}
    blocks = top_levels(top, out_channels)
    return BackboneWithFPN(body, names, channels, out_channels, blocks, pyramid_norm(fpn_norm))


class SmallFPN(nn.Module):
    """Four stages of one basic block each, stride 4 to 32, and a feature pyramid on them.

    Maps "0" to "3" are P2 to P5, [N, out_channels, H / 2^f, W / 2^f].
    """

    def __init__(
        self, norm: str, out_channels: int, fpn_norm: str = "", widths: Sequence[int] = (16, 32, 64, 96, 128)
    ) -> None:
        super().__init__()
        make_norm = norm_layer(norm)
        stem, *stages = widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), make_norm(stem), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        for before, after in zip(widths, stages, strict=False):
            shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), make_norm(after))
            blocks.append(resnet.BasicBlock(before, after, 2, shortcut, norm_layer=make_norm))
        self.stages = nn.ModuleList(blocks)
        self.fpn = FeaturePyramidNetwork(stages, out_channels, norm_layer=pyramid_norm(fpn_norm))
        self.out_channels = out_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pixels [N, 3, H, W] -> the pyramid."""
        x = self.stem(x)
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for i, stage in enumerate(self.stages):
            x = stage(x)
            maps[str(i)] = x
        return self.fpn(maps)
