"""The consistency losses between two predictions of the same anchors or regions: D and the box term.

    Eq. 3 (distillation)   D(sg P_t || P_s) + |sg R_t - R_s|^2
    Eq. 2 (scale)          D(sg P || P^) + D(sg P^ || P) + |R - R^|^2

D is the KL divergence, from logits; its gradient with respect to the student's logits is p_s - p_t (METHOD
3). The classification samples go through a `Reweight` (METHOD 6), once a term over all levels; the box term
is a plain mean.

Shape shorthand: see `sed.core.structures`; t is the target's side, p the student's, sg stop-gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sed.core.reweighting import Reweight, at_least_float32
from sed.core.structures import DenseLevel, RegionPrediction


class ConsistencyLoss(NamedTuple):
    """Two float32 scalars: D, re-weighted, and the box term."""

    cls: Tensor
    box: Tensor


def dense_consistency(
    pairs: Sequence[tuple[DenseLevel, DenseLevel]], reweight: Reweight, symmetric: bool
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
    squared = _squared_difference(target_deltas, deltas, symmetric)  # [N, A]
    box = torch.where(valid, squared, 0.0).sum() / valid.sum().clamp(min=1)
    return ConsistencyLoss(cls, box)


def region_consistency(
    target: RegionPrediction, student: RegionPrediction, reweight: Reweight, symmetric: bool
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

    squared = _squared_difference(target.deltas, student.deltas, symmetric)  # [R, K] or [R, 1]
    with torch.no_grad():
        weights = _softmax(target.logits)
        if symmetric:
            weights = (weights + _softmax(student.logits)) / 2
        weights = weights[:, :-1]  # [R, K], background is the last
        if squared.shape[1] == 1:
            weights = weights.sum(1, keepdim=True)  # [R, 1], foreground
    box = (weights * squared).sum() / max(squared.shape[0], 1)
    return ConsistencyLoss(cls, box)


def bernoulli_kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL([t, 1 - t] || [p, 1 - p]) of sigmoid logits, elementwise; gradient p - t, to `logits` only."""
    kl: Tensor = _BernoulliKL.apply(at_least_float32(target_logits.detach()), at_least_float32(logits))
    return kl


def categorical_kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(t || p) [..] of softmax logits [.., K + 1]; gradient p - t, to `logits` only."""
    kl: Tensor = _CategoricalKL.apply(at_least_float32(target_logits.detach()), at_least_float32(logits))
    return kl


@torch.no_grad()
def bernoulli_disagreement(target_logits: Tensor, logits: Tensor) -> Tensor:
    """The g of METHOD 6 for sigmoid logits, elementwise: |p - t| in [0, 1], no gradient."""
    return (at_least_float32(logits).sigmoid() - at_least_float32(target_logits).sigmoid()).abs_()


@torch.no_grad()
def categorical_disagreement(target_logits: Tensor, logits: Tensor) -> Tensor:
    """The g of METHOD 6 for softmax logits [.., K + 1]: 1/2 sum_c |p_c - t_c| in [0, 1], no gradient."""
    return (_softmax(logits) - _softmax(target_logits)).abs_().sum(-1) / 2


def _squared_difference(target: Tensor, student: Tensor, symmetric: bool) -> Tensor:
    target = at_least_float32(target if symmetric else target.detach())
    return (target - at_least_float32(student)).square().sum(-1)  # [.., 4] -> [..]


def _softmax(logits: Tensor) -> Tensor:
    return at_least_float32(logits).softmax(-1)


# D with its gradient written out: autograd would keep five tensors of the logits' size where p - t is all it
# needs, and its rounded gradient of two equal predictions would not be exactly 0.


class _BernoulliKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: Tensor, logits: Tensor) -> Tensor:
        t = target.sigmoid()
        ctx.save_for_backward(logits.sigmoid() - t)
        # KL = t log(t / p) + (1 - t) log((1 - t) / (1 - p)), and with l(x) = log(1 + exp(-|x|))
        # logsigmoid(x) = min(x, 0) - l(x), logsigmoid(-x) = -max(x, 0) - l(x): no large terms that cancel
        kl = _log1p_exp(logits) - _log1p_exp(target)
        kl.addcmul_(t, target.clamp(max=0) - logits.clamp(max=0))
        return kl.addcmul_((-target).sigmoid_(), logits.clamp(min=0) - target.clamp(min=0))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, Tensor]:
        (difference,) = ctx.saved_tensors  # p - t
        return None, grads[0] * difference


class _CategoricalKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: Tensor, logits: Tensor) -> Tensor:
        t = target.softmax(-1)
        ctx.save_for_backward(logits.softmax(-1) - t)
        return (t * (target.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, Tensor]:
        (difference,) = ctx.saved_tensors  # p - t
        return None, grads[0].unsqueeze(-1) * difference


def _log1p_exp(x: Tensor) -> Tensor:
    """Log(1 + exp(-|x|)) to full precision (Kahan's log1p: torch's own takes 5 x as long on a CPU)."""
    small = x.abs().neg_().exp_()
    one = small + 1
    rest = one - 1  # what of `small` has survived the addition
    return torch.where(rest == 0, small, one.log_().mul_(small).div_(rest))
