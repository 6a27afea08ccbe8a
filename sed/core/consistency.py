"""The consistency losses between two predictions of the same anchors or regions: D and the box term.

    Eq. 3 (distillation)   D(sg P_t || P_s) + |sg R_t - R_s|^2
    Eq. 2 (scale)          D(sg P || P^) + D(sg P^ || P) + |R - R^|^2

D is the KL divergence, from logits; its gradient with respect to the student's logits is p_s - p_t (METHOD
3). The classification samples go through a `Reweight` (METHOD 6), once a term over all levels; the box term
is a plain mean.

Shape shorthand: see `sed.core.structures`; t is the target's side, p the student's, sg stop-gradient.
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
    """Two float32 scalars: D, re-weighted, and the box term."""

    cls: Tensor
    box: Tensor


def dense_consistency(
    pairs: Sequence[tuple[DenseLevel, DenseLevel]],
    reweight: Reweight,
    symmetric: bool,
    distance: BoxDistance | None = None,
) -> ConsistencyLoss:
    """Eq. 3 or Eq. 2 over the anchors of all levels together (METHOD 3).

    Every class logit of an anchor is a Bernoulli vector and a sample of its own (RPN: one, RetinaNet: K). An
    anchor counts where both sides say that it is valid. The box term is the mean over anchors of the squared
    difference, summed over the 4 deltas.

    Args:
        pairs: (target, student) of each level, equal in shape.
        reweight: how the samples of D become a scalar.
        symmetric: False: Eq. 3, no gradient to the target's side. True: Eq. 2, both directions of D and the
            gradient of the box term to both sides; one histogram serves both directions, for g is the same.
        distance: of the box term; None: `squared_error`, the paper's.

    Raises:
        ValueError: for no pair at all, or a pair of unequal shapes.
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
    """Eq. 3 or Eq. 2 over the regions of the whole batch (METHOD 4).

    Box term [O]: class-specific deltas are compared per class and weighted by the target's probability of the
    class, background excluded; class-agnostic ones by the target's foreground probability; then the mean over
    regions. In Eq. 2 each side is the target of the other, so the weight is the mean of both sides'
    probabilities. Weights carry no gradient.

    Args:
        target: R regions.
        student: the same R regions.
        reweight: how the samples of D become a scalar.
        symmetric: as for `dense_consistency`.
        distance: of the box term; None: `squared_error`, the paper's.

    Returns:
        The loss, 0 and differentiable where R = 0.

    Raises:
        ValueError: for sides of unequal shapes.
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
    """|R_t - R_s|^2, the paper's box term, of four numbers [.., 4] each: [..]."""
    return (target - student).square().sum(-1)


def absolute_error(target: Tensor, student: Tensor) -> Tensor:
    """The sum of the absolute differences, as detectors' own box losses have it."""
    return (target - student).abs().sum(-1)


def box_distance(target: Tensor, student: Tensor, symmetric: bool, distance: BoxDistance | None = None) -> Tensor:
    """The box term before its mean: [..] of deltas or boxes [.., 4]; the target gets a gradient only in Eq. 2."""
    target = at_least_float32(target if symmetric else target.detach())
    return (distance or squared_error)(target, at_least_float32(student))
