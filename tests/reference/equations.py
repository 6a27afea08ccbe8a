"""The equations of docs/method.md, literally: Python loops over samples and probabilities.

Slow on purpose; autograd through these loops gives the gradients that the fast versions must have. Float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sed.core.structures import DenseLevel, RegionPrediction


def kl_of_probabilities(t: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    """sum_c t_c log(t_c / p_c), from the definition."""
    return sum((a * (a / b).log() for a, b in zip(t, p, strict=True)), torch.zeros((), dtype=torch.float64))


def bernoulli_sample(target: Tensor, logit: Tensor) -> tuple[Tensor, float]:
    """KL([t, 1 - t] || [p, 1 - p]) with t constant, and g = half the L1 distance."""
    t, p = 1 / (1 + (-target.detach()).exp()), 1 / (1 + (-logit).exp())
    g = (abs(float((t - p).detach())) + abs(float(((1 - t) - (1 - p)).detach()))) / 2
    return kl_of_probabilities([t, 1 - t], [p, 1 - p]), g


def categorical_sample(target: Tensor, logits: Tensor) -> tuple[Tensor, float]:
    """KL(t || p) of two rows of logits with t constant, and g = half the L1 distance."""
    t, p = target.detach().exp() / target.detach().exp().sum(), logits.exp() / logits.exp().sum()
    return kl_of_probabilities(list(t), list(p)), sum(abs(float(a - b)) for a, b in zip(t, p.detach(), strict=True)) / 2


def equation_5(kl: Sequence[Tensor], g: Sequence[float], bins: int) -> Tensor:
    """L = 1/M sum_i KL_i / R_idx(g_i)."""
    index = [min(math.floor(value * bins), bins - 1) for value in g]
    total = torch.zeros((), dtype=torch.float64)
    for i, value in enumerate(kl):
        total = total + value / index.count(index[i])
    return total / bins


def plain_mean(kl: Sequence[Tensor], g: Sequence[float]) -> Tensor:
    return sum(kl, torch.zeros((), dtype=torch.float64)) / max(len(kl), 1)


def hard_examples(kl: Sequence[Tensor], g: Sequence[float], fraction: float) -> Tensor:
    kept = sorted(kl, key=lambda value: float(value.detach()), reverse=True)[: math.ceil(len(kl) * fraction)]
    return sum(kept, torch.zeros((), dtype=torch.float64)) / max(len(kept), 1)


def focal_modulation(kl: Sequence[Tensor], g: Sequence[float], gamma: float) -> Tensor:
    return plain_mean([value * weight**gamma for value, weight in zip(kl, g, strict=True)], g)


def dense_terms(pairs: Sequence[tuple[DenseLevel, DenseLevel]], bins: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(D re-weighted by Eq. 5, box term) of Eq. 3, or of Eq. 2 where symmetric; anchor by anchor."""
    kl, g, boxes = [], [], []
    for one, other in pairs:
        images, anchors, classes = one.logits.shape
        for n in range(images):
            for a in range(anchors):
                if not (one.valid[n, a] and other.valid[n, a]):
                    continue
                for c in range(classes):
                    value, gap = bernoulli_sample(one.logits[n, a, c], other.logits[n, a, c])
                    if symmetric:
                        value = value + bernoulli_sample(other.logits[n, a, c], one.logits[n, a, c])[0]
                    kl.append(value)
                    g.append(gap)
                target = one.deltas[n, a] if symmetric else one.deltas[n, a].detach()
                boxes.append(sum((target[k] - other.deltas[n, a, k]) ** 2 for k in range(4)))
    return equation_5(kl, g, bins), plain_mean(boxes, g)


def region_terms(
    target: RegionPrediction, student: RegionPrediction, bins: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """(D re-weighted by Eq. 5, box term) of Eq. 3, or of Eq. 2 where symmetric; region by region."""
    kl, g, boxes = [], [], []
    for r in range(target.logits.shape[0]):
        value, gap = categorical_sample(target.logits[r], student.logits[r])
        probability = target.logits[r].detach().exp() / target.logits[r].detach().exp().sum()
        if symmetric:
            value = value + categorical_sample(student.logits[r], target.logits[r])[0]
            own = student.logits[r].detach().exp() / student.logits[r].detach().exp().sum()
            probability = (probability + own) / 2
        kl.append(value)
        g.append(gap)
        classes = target.logits.shape[1] - 1
        box = torch.zeros((), dtype=torch.float64)
        for c in range(classes):
            column = c if target.deltas.shape[1] > 1 else 0
            deltas = target.deltas[r, column] if symmetric else target.deltas[r, column].detach()
            box = box + probability[c] * sum((deltas[k] - student.deltas[r, column, k]) ** 2 for k in range(4))
        boxes.append(box)
    return equation_5(kl, g, bins), plain_mean(boxes, g)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    return width * height / union(a, b) if union(a, b) else 0.0


def union(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    return (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height


def giou(a: Sequence[float], b: Sequence[float]) -> float:
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return iou(a, b) - (hull - union(a, b)) / hull


def average(teacher: dict[str, Tensor], student: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
    """Eq. 4, number by number."""
    result = {}
    for name, old in teacher.items():
        new = student[name]
        if not old.is_floating_point():
            result[name] = new.clone()
            continue
        values = [rate * float(o) + (1 - rate) * float(n) for o, n in zip(old.flatten(), new.flatten(), strict=True)]
        result[name] = torch.tensor(values, dtype=old.dtype).reshape(old.shape)
    return result
