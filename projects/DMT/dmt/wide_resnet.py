"""Wide ResNet (Zagoruyko and Komodakis, 2016) for images of 32 pixels; WRN-28-2 has 1,467,610 parameters at 10 classes.

Pre-activation blocks; where a block changes the width, its shortcut convolution is fed by the activated input, as in
the code that DMT's authors took over. Shape shorthand: B images, C classes, K channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class WideBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, twice, and a shortcut.

    Args:
        before: input channels.
        after: output channels.
        stride: of the first convolution.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, after, H / stride, W / stride]."""
        active = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(F.relu(self.bn2(self.conv1(active))))


class WideResNet(nn.Module):
    """A stem of 16 channels, three stages of 16, 32 and 64 times `widen` channels, strides 1, 2, 2, mean over the map.

    Args:
        num_classes: C.
        depth: of the network, 6 n + 4.
        widen: the widening factor.

    Raises:
        ValueError: another depth.
    """

    def __init__(self, num_classes: int, depth: int = 28, widen: int = 2) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"WideResNet: depth is {depth}; it must be 6 n + 4: 10, 16, 22, 28, 40, ...")
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        stages, before = [], 16
        for after, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            first = WideBlock(before, after, stride)
            stages.append(nn.Sequential(first, *(WideBlock(after, after, 1) for _ in range(blocks - 1))))
            before = after
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(before)
        self.classifier = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] float32 -> logits [B, C] float32."""
        maps = F.relu(self.norm(self.stages(self.stem(images))))
        return self.classifier(maps.mean(dim=(2, 3))).float()
