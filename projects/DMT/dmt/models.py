"""The networks by name: DeepLab-v2 and Wide ResNet of the papers, and two small ones for CPU benchmarks.

Every one maps images [B, 3, H, W] float32 to float32 logits: [B, C, H, W] at the input's own size (segmentation) or
[B, C].
`build_model` draws the weights from torch's global generator: seed it before.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter

from dmt.small import SmallClassifier, SmallSegmenter, resize
from dmt.wide_resnet import WideResNet

SEGMENTERS = ("deeplab_v2", "small_segmenter")
CLASSIFIERS = ("wide_resnet", "small_classifier")
NAMES = SEGMENTERS + CLASSIFIERS
DEPTHS = (50, 101)
RATES = (6, 12, 18, 24)


class DilatedHead(nn.Module):
    """DeepLab-v2's classifier: the sum of four 3x3 convolutions of dilation 6, 12, 18, 24; nothing else.

    The authors of DMT return inside the loop that sums, so that only the first two contribute; `num_active_rates=2`
    does the same. Convolutions that do not contribute stay in the state_dict and need no gradient.

    Args:
        channels: of the features.
        num_classes: C.
        num_active_rates: how many of the four are summed, from the smallest dilation on.

    Raises:
        ValueError: `num_active_rates` is not from 1 to 4.
    """

    def __init__(self, channels: int, num_classes: int, num_active_rates: int = len(RATES)) -> None:
        super().__init__()
        if not 1 <= num_active_rates <= len(RATES):
            raise ValueError(f"num_active_rates is {num_active_rates}; it must be from 1 to {len(RATES)}")
        self.convs = nn.ModuleList(nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate) for rate in RATES)
        self.num_active_rates = num_active_rates
        self.convs[num_active_rates:].requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, channels, h, w] -> logits [B, C, h, w]."""
        first, *others = self.convs[: self.num_active_rates]
        logits = first(features)
        for convolution in others:
            logits = logits + convolution(features)
        return logits


class DeepLabV2(nn.Module):
    """DeepLab-v2 (Chen et al., 2017) without its CRF: a ResNet of output stride 8 and `DilatedHead`.

    Args:
        num_classes: C.
        depth: of torchvision's ResNet, 50 or 101.
        num_active_rates: see `DilatedHead`.

    Raises:
        ValueError: another depth or number of rates.
    """

    def __init__(self, num_classes: int, depth: int = 101, num_active_rates: int = len(RATES)) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"deeplab_v2: depth is {depth}; it must be one of {', '.join(map(str, DEPTHS))}")
        body = getattr(resnet, f"resnet{depth}")(weights=None, replace_stride_with_dilation=[False, True, True])
        self.depth = depth
        self.backbone = IntermediateLayerGetter(body, {"layer4": "out"})
        self.head = DilatedHead(body.inplanes, num_classes, num_active_rates)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] float32 -> logits [B, C, H, W] float32; a side of 321 has maps of side 41."""
        return resize(self.head(self.backbone(images)["out"]).float(), images.shape[-2:])


def build_model(name: str, num_classes: int, *, depth: int = 101, num_active_rates: int = len(RATES)) -> nn.Module:
    """A network with fresh weights, in training mode.

    Args:
        name: one of `NAMES`.
        num_classes: C, background included.
        depth: of deeplab_v2's ResNet, 50 or 101.
        num_active_rates: of deeplab_v2's head; 4 as in DeepLab-v2, 2 as in the code of DMT's authors.

    Raises:
        ValueError: an unknown name, or an argument that the network does not take.
    """
    if name == "deeplab_v2":
        return DeepLabV2(num_classes, depth, num_active_rates)
    if name == "wide_resnet":
        return WideResNet(num_classes)
    if name == "small_segmenter":
        return SmallSegmenter(num_classes)
    if name == "small_classifier":
        return SmallClassifier(num_classes)
    raise ValueError(f"model {name!r} is not known; it must be one of {', '.join(NAMES)}")
