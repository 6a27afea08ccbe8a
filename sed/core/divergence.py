"""D of Eq. 2 and 3, the KL divergence computed from logits, and g of Eq. 5 (docs/method.md 3 and 6).

Shape shorthand: see `sed.core.structures`; t is the target's probability, p the student's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sed.core.precision import at_least_float32


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
    """The g of Eq. 5 for sigmoid logits, elementwise: |p - t| in [0, 1], no gradient."""
    return (at_least_float32(logits).sigmoid() - at_least_float32(target_logits).sigmoid()).abs_()


@torch.no_grad()
def categorical_disagreement(target_logits: Tensor, logits: Tensor) -> Tensor:
    """The g of Eq. 5 for softmax logits [.., K + 1]: 1/2 sum_c |p_c - t_c| in [0, 1], no gradient."""
    return (probabilities(logits) - probabilities(target_logits)).abs_().sum(-1) / 2


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, computed in float32 or float64."""
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
