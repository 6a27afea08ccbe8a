"""Two small networks for the benchmarks that a CPU runs in minutes: digits as classes, digits on textured ground.

Both have batch normalisation, as the large ones do, so that what is measured on them is the same training step.
Shape shorthand: B images, C classes, H and W the image's sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock


def _convolution(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _block(before: int, after: int, stride: int) -> BasicBlock:
    shortcut = None
    if stride > 1 or before != after:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))
    return BasicBlock(before, after, stride, shortcut)


class SmallSegmenter(nn.Module):
    """A residual encoder of stride 8 (a pixel of its last map sees 71 pixels) and a decoder up to half the size.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = _convolution(3, 16, stride=2)  # H/2
        self.stage1 = _block(16, 32, stride=2)  # H/4
        self.stage2 = nn.Sequential(_block(32, 64, stride=2), _block(64, 64, stride=1))  # H/8
        self.down = _convolution(64, 32, size=1)
        self.merge1 = _convolution(32 + 32, 48)
        self.merge2 = _convolution(48 + 16, 32)
        self.classifier = nn.Conv2d(32, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] float32 -> logits [B, C, H, W]."""
        half = self.stem(images)
        quarter = self.stage1(half)
        x = self.down(self.stage2(quarter))
        x = self.merge1(torch.cat((resize(x, quarter.shape[-2:]), quarter), dim=1))
        x = self.merge2(torch.cat((resize(x, half.shape[-2:]), half), dim=1))
        return resize(self.classifier(x).float(), images.shape[-2:])


class SmallClassifier(nn.Module):
    """Two residual blocks for images of 8 to 16 pixels.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(3, 16), _block(16, 16, stride=1), _block(16, 32, stride=2))
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] float32 -> logits [B, C]."""
        return self.classifier(self.body(images).mean(dim=(2, 3))).float()


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, K, h, w] -> [B, K, *size], bilinear with the corners aligned, as the authors do it."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
