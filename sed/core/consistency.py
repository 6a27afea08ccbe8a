"""The consistency losses between two predictions of the same anchors or regions: D and the box term.

    Eq. 3 (distillation)   D(sg t || p) + |sg R_t - R_p|^2
    Eq. 2 (scale)          D(sg t || p) + D(sg p || t) + |R_t - R_p|^2

t and p are class probabilities, R box deltas: t and R_t of the target (the teacher, or the student on X), p and R_p of
the student. D is the KL divergence, computed from logits; its gradient with respect to the student's logits is p - t
(docs/method.md 3). The KL divergences of all samples of a term, all levels together, become one number by a `Reweight`
(Eq. 5, docs/method.md 6); the box term is a plain mean.

Shape shorthand: see `sed.core.structures`; t is the target, p the student's prediction, sg stop-gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sed.core.divergence import (
    bernoulli_disagreement,
    bernoulli_kl,
    categorical_disagreement,
    categorical_kl,
    probabilities,
)
from sed.core.precision import at_least_float32
from sed.core.reweighting import Reweight
from sed.core.structures import DenseLevel, RegionPrediction

BoxDistance = Callable[[Tensor, Tensor], Tensor]  # [.., 4] and [.., 4] -> [..]


class ConsistencyLoss(NamedTuple):
    """The two parts of Eq. 2 or Eq. 3, float32 scalars: the re-weighted KL divergence, and the box term."""

    cls: Tensor
    box: Tensor


def dense_consistency(
    pairs: Sequence[tuple[DenseLevel, DenseLevel]],
    reweight: Reweight,
    symmetric: bool,
    distance: BoxDistance | None = None,
) -> ConsistencyLoss:
    """The consistency loss of paired anchors of all levels: Eq. 3, or Eq. 2 if `symmetric` (docs/method.md 3).

    Each class logit of an anchor is a Bernoulli vector [p, 1 - p] and one sample of D (RPN: 1 per anchor, RetinaNet:
    K). An anchor counts where it is valid in both predictions. The box term is the mean over anchors of the squared
    difference, summed over the 4 deltas.

    Args:
        pairs: (target, student) of each level, equal in shape.
        reweight: turns the samples of D into a scalar.
        symmetric: False: Eq. 3, no gradient to the target. True: Eq. 2, D in both directions, and the box term has a
            gradient to both predictions; g is the same in both directions, so one histogram serves both.
        distance: the box term of one anchor; None: `squared_error`.

    Raises:
        ValueError: where there is no pair, or a pair is unequal in shape.
    """
    if not pairs:
        raise ValueError("dense_consistency: expected at least one pair of levels, got none")
    for one, other in pairs:
        if one.logits.shape != other.logits.shape or one.deltas.shape != other.deltas.shape:
            raise ValueError(
                f"dense_consistency: level {one.level} has logits {tuple(one.logits.shape)} and deltas "
                f"{tuple(one.deltas.shape)}, its partner {other.level} {tuple(other.logits.shape)} and "
                f"{tuple(other.deltas.shape)}; pair views of equal grids (views.pair_levels)"
            )
    target_logits = torch.cat([target.logits for target, _ in pairs], 1)  # [N, A, C], A over all levels
    logits = torch.cat([student.logits for _, student in pairs], 1)  # [N, A, C]
    valid = torch.cat([target.valid & student.valid for target, student in pairs], 1)  # [N, A]
    kl = bernoulli_kl(target_logits, logits)  # [N, A, C]
    if symmetric:
        kl = kl + bernoulli_kl(logits, target_logits)
    g = bernoulli_disagreement(target_logits, logits)
    cls = reweight(kl, g, valid[..., None].expand_as(kl))

    target_deltas = torch.cat([target.deltas for target, _ in pairs], 1)  # [N, A, 4]
    deltas = torch.cat([student.deltas for _, student in pairs], 1)  # [N, A, 4]
    distances = box_distance(target_deltas, deltas, symmetric, distance)  # [N, A]
    box = torch.where(valid, distances, 0.0).sum() / valid.sum().clamp(min=1)
    return ConsistencyLoss(cls, box)


def region_consistency(
    target: RegionPrediction,
    student: RegionPrediction,
    reweight: Reweight,
    symmetric: bool,
    distance: BoxDistance | None = None,
) -> ConsistencyLoss:
    """The consistency loss of the regions of a batch: Eq. 3, or Eq. 2 if `symmetric` (docs/method.md 4).

    Box term [D]: class-specific deltas are compared per class and weighted by the target's probability of that class,
    background excluded; class-agnostic deltas are weighted by the target's foreground probability; then comes the mean
    over regions. In Eq. 2 each prediction is the other's target, so the weight is the mean of both probabilities.
    Weights carry no gradient.

    Args:
        target: predictions of R regions.
        student: predictions of the same R regions.
        reweight: turns the samples of D into a scalar.
        symmetric: as for `dense_consistency`.
        distance: the box term of one region and class; None: `squared_error`, the paper's.

    Returns:
        The loss, 0 and differentiable where R = 0.

    Raises:
        ValueError: where the two predictions are unequal in shape.
    """
    if target.logits.shape != student.logits.shape or target.deltas.shape != student.deltas.shape:
        raise ValueError(
            f"region_consistency: target has logits {tuple(target.logits.shape)} and deltas "
            f"{tuple(target.deltas.shape)}, student {tuple(student.logits.shape)} and "
            f"{tuple(student.deltas.shape)}; run both region heads on the same proposals"
        )
    kl = categorical_kl(target.logits, student.logits)  # [R]
    if symmetric:
        kl = kl + categorical_kl(student.logits, target.logits)
    g = categorical_disagreement(target.logits, student.logits)  # [R]
    cls = reweight(kl, g, torch.ones_like(kl, dtype=torch.bool))

    distances = box_distance(target.deltas, student.deltas, symmetric, distance)  # [R, K] or [R, 1]
    with torch.no_grad():
        weights = probabilities(target.logits)[:, :-1]  # [R, K], background is the last
        if symmetric:
            weights = (weights + probabilities(student.logits)[:, :-1]) / 2
        if distances.shape[1] == 1:
            weights = weights.sum(1, keepdim=True)  # [R, 1], foreground
    box = (weights * distances).sum() / max(len(weights), 1)
    return ConsistencyLoss(cls, box)


def squared_error(target: Tensor, student: Tensor) -> Tensor:
    """|R_t - R_p|^2, the box term as it is read here [O], of four numbers [.., 4] each: [..]."""
    return (target - student).square().sum(-1)


def absolute_error(target: Tensor, student: Tensor) -> Tensor:
    """|R_t - R_p|_1, the L1 distance of many detectors' own box losses: [..] of deltas or boxes [.., 4]."""
    return (target - student).abs().sum(-1)


def box_distance(target: Tensor, student: Tensor, symmetric: bool, distance: BoxDistance | None = None) -> Tensor:
    """The box term before its mean: [..] of deltas or boxes [.., 4]; the target gets a gradient only in Eq. 2."""
    target = at_least_float32(target if symmetric else target.detach())
    return (distance or squared_error)(target, at_least_float32(student))
