"""The networks of DMT written out once more, slowly: loops over taps and pixels, layers called one by one by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dilated_sum(features: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    """Sum of 3x3 convolutions with padding = dilation: features [B, K, h, w] -> [B, C, h, w]; out of the map is 0."""
    batch, _, height, width = features.shape
    out = features.new_zeros(batch, len(biases[0]), height, width)
    for weight, bias, rate in zip(weights, biases, rates, strict=True):
        for y in range(height):
            for x in range(width):
                out[:, :, y, x] = out[:, :, y, x] + bias
                for i in range(3):
                    for j in range(3):
                        v, u = y + (i - 1) * rate, x + (j - 1) * rate
                        if 0 <= v < height and 0 <= u < width:
                            out[:, :, y, x] = out[:, :, y, x] + features[:, :, v, u] @ weight[:, :, i, j].T
    return out


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with the corners aligned: output pixel y lies at y (h - 1) / (H - 1) of the input."""
    (h, w), (height, width) = maps.shape[-2:], size
    out = maps.new_zeros(*maps.shape[:2], height, width)
    for y in range(height):
        for x in range(width):
            v, u = y * (h - 1) / (height - 1), x * (w - 1) / (width - 1)
            top, left = min(int(v), h - 1), min(int(u), w - 1)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            dy, dx = v - top, u - left
            above = (1 - dx) * maps[:, :, top, left] + dx * maps[:, :, top, right]
            below = (1 - dx) * maps[:, :, bottom, left] + dx * maps[:, :, bottom, right]
            out[:, :, y, x] = (1 - dy) * above + dy * below
    return out


def resnet_features(body: nn.Module, x: Tensor) -> Tensor:
    """torchvision's ResNet without pooling and classifier."""
    x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
    return body.layer4(body.layer3(body.layer2(body.layer1(x))))


def wide_resnet(state: dict[str, Tensor], x: Tensor, blocks: int = 4) -> Tensor:
    """WRN in eval mode from its tensors: BN as a formula, stride 2 at the entry of stages 2 and 3."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = F.conv2d(x, state["stem.weight"], padding=1)
    for stage in range(3):
        for block in range(blocks):
            name, stride = f"stages.{stage}.{block}", 2 if stage and not block else 1
            if block == 0:
                x = norm(x, f"{name}.bn1").clamp(min=0)  # the shortcut sees the activated input
                active = x
            else:
                active = norm(x, f"{name}.bn1").clamp(min=0)
            out = norm(F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn2")
            out = F.conv2d(out.clamp(min=0), state[f"{name}.conv2.weight"], padding=1)
            x = out + (F.conv2d(x, state[f"{name}.shortcut.weight"], stride=stride) if block == 0 else x)
    x = F.avg_pool2d(norm(x, "norm").clamp(min=0), 8).flatten(1)
    return x @ state["classifier.weight"].T + state["classifier.bias"]


def coco_names(model: nn.Module) -> dict[str, Tensor]:
    """A DeepLabV2's tensors as resnet101COCO-41f33a49.pth names them: no counters, the head is layer5."""
    state = {}
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            state[name.removeprefix("backbone.").replace("head.convs.", "layer5.conv2d_list.")] = value
    return state


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with statistics and affine parameters other than 0 and 1, in place."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 5)
    return module
