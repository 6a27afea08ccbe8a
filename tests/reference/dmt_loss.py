"""The dynamic losses of DMT and DST-CBC once more, pixel by pixel, from Eq. 6 and the papers' words. Float64, slow."""

from __future__ import annotations

import torch
from torch import Tensor

ZERO = torch.zeros((), dtype=torch.float64)


def softmax(logits: Tensor) -> list[Tensor]:
    powers = [(z - logits.detach().max()).exp() for z in logits]
    return [power / sum(powers, ZERO) for power in powers]


def pixel(
    p: list[float], y_a: int, c_a: float, kind: str, gamma1: float, gamma2: float, threshold: float
) -> tuple[float, int]:
    """(weight, target) of one pseudo-labelled pixel with probabilities p of the model in training."""
    y_b = p.index(max(p))
    c_b, p_b = p[y_b], p[y_a]
    if kind == "naive":
        return p_b**gamma1, y_a
    if kind == "stored":
        return c_a**gamma1, y_a
    if kind == "threshold":
        return (1.0 if c_a >= threshold else 0.0), y_a
    if gamma1 == 0 and gamma2 == 0:
        return 1.0, y_a
    if y_a == y_b:
        return p_b**gamma1, y_a
    if c_a >= c_b:
        return p_b**gamma2, y_a
    return ((1 - c_a) ** gamma2, y_b) if kind == "flip" else (0.0, y_a)


def loss(
    logits: Tensor,
    labels: Tensor,
    confidence: Tensor,
    pseudo: Tensor,
    kind: str,
    gamma1: float,
    gamma2: float,
    threshold: float = 0.9,
) -> tuple[Tensor, list[float], list[int]]:
    """Loss, weights and targets of a batch [B, C, *], with autograd through the cross-entropy only."""
    rows = logits.flatten(2) if logits.ndim > 2 else logits[..., None]  # [B, C, pixels]
    total, counted, weights, targets = ZERO, 0, [], []
    for b in range(rows.shape[0]):
        for i in range(rows.shape[2]):
            label, c_a = int(labels[b].flatten()[i]), float(confidence[b].flatten()[i])
            weight, target = 0.0, label
            if label != 255:
                p = softmax(rows[b, :, i])
                weight = 1.0
                if pseudo[b]:
                    weight, target = pixel([float(x.detach()) for x in p], label, c_a, kind, gamma1, gamma2, threshold)
                total = total + weight * -p[target].log()
                counted += 1
            weights.append(weight)
            targets.append(target)
    return total / max(counted, 1), weights, targets


def mixed(logits: Tensor, labels_a: list[int], labels_b: list[int], weight: list[float], share: float) -> Tensor:
    total = ZERO
    for z, a, b, w in zip(logits, labels_a, labels_b, weight, strict=True):
        p = softmax(z)
        total = total + w * (share * -p[a].log() + (1 - share) * -p[b].log())
    return total / len(logits)


def batch(seed, shape=(4, 3, 5, 6), dtype=torch.float64):
    """Random logits, labels (a fifth ignored), confidences; the first half pseudo-labelled."""
    source = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)
    at = (shape[0], *shape[2:])
    labels = torch.randint(0, shape[1], at, generator=source)
    labels[torch.rand(at, generator=source) < 0.2] = 255
    confidence = torch.rand(at, generator=source, dtype=torch.float64).to(dtype) * 0.7 + 0.3
    return logits, labels, confidence, torch.arange(shape[0]) < shape[0] // 2
