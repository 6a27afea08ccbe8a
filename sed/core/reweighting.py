"""Re-weighting of the classification terms: Eq. 5, and the alternatives of Tab. 10 (docs/method.md 6).

A `Reweight` turns the samples of one term and head of one step, all levels together, into one loss:

    kl    KL divergence of each sample
    g     disagreement of each sample in [0, 1]: 1/2 sum_c |p_c - t_c|, for a Bernoulli vector |p - t|
    mask  bool, which samples count (those on padding do not)

All three have the same shape, which may be any. The result is a scalar, float32 (float64 for float64 samples), 0 where
no sample counts. It is differentiable in kl only; g and the counts R_j are constants. Nothing here waits for the GPU:
no boolean indexing, and no torch.bincount, which reads the largest index back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sed.core.precision import at_least_float32

Reweight = Callable[[Tensor, Tensor, Tensor], Tensor]
# Counts of this process -> their sum over all processes, and the number of processes
SumOverProcesses = Callable[[Tensor], tuple[Tensor, int]]

KINDS = ("histogram", "none", "ohem", "focal")
LANES = 4096  # counters that share the counting, see `_count`


def make_reweight(kind: str, bins: int = 10, sum_over_processes: SumOverProcesses | None = None) -> Reweight:
    """Build the `Reweight` named `kind`: "histogram" (Eq. 5), "none" (plain mean), "ohem" or "focal" (Tab. 10).

    Args:
        kind: the name.
        bins: M of Eq. 5, for "histogram".
        sum_over_processes: see `histogram`.

    Raises:
        ValueError: for another name, or bins < 1.
    """
    if kind == "histogram":
        return histogram(bins, sum_over_processes)
    if kind not in KINDS:
        raise ValueError(f"re-weighting: expected one of {', '.join(KINDS)}, got {kind!r}")
    return {"none": mean, "ohem": ohem, "focal": focal}[kind]()


def histogram(bins: int, sum_over_processes: SumOverProcesses | None = None) -> Reweight:
    """Eq. 5: L = 1/M sum_i KL_i / R_idx(g_i), idx(g) = min(floor(g M), M - 1).

    R_j is the number of samples in bin j. Every bin has the same total weight, 1 / M, so that the few samples with a
    large disagreement count as much as the many with a small one. M is the number of all bins, empty ones too, as the
    paper prints it. With all samples in one bin L is their mean / M; doubling every sample changes nothing.

    Args:
        bins: M >= 1.
        sum_over_processes: adds up R_j over all processes, so that the mean of the processes' losses is the loss of
            their whole batch; every process must call the `Reweight` equally often. None: each process counts its own.

    Raises:
        ValueError: for bins < 1.
    """
    if bins < 1:
        raise ValueError(f"histogram re-weighting: expected bins (M) >= 1, got {bins}")

    def reweight(kl: Tensor, g: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            # clamped on both sides: a NaN becomes some index, which must not be out of range
            index = (at_least_float32(g) * bins).long().clamp_(0, bins - 1)
            index = torch.where(mask, index, bins)  # one more bin, M, for the samples that do not count
            counts, processes = _count(index, bins + 1), 1
            if sum_over_processes is not None:
                counts, processes = sum_over_processes(counts)
            share = processes / (bins * counts.clamp(min=1)).to(at_least_float32(kl).dtype)  # [M + 1], 1 / (M R_j)
            weights = share[index]
        return _masked_sum(at_least_float32(kl), weights, mask)

    return reweight


def mean() -> Reweight:
    """No re-weighting: the mean over the samples that count."""

    def reweight(kl: Tensor, g: Tensor, mask: Tensor) -> Tensor:
        return _masked_sum(at_least_float32(kl), None, mask) / mask.sum().clamp(min=1)

    return reweight


def ohem(fraction: float = 0.1) -> Reweight:
    """Online hard example mining: the mean over the `fraction` of samples with the largest KL, at least one.

    Args:
        fraction: in (0, 1]; 1 is the plain mean. The number of samples is rounded up.

    Raises:
        ValueError: for a fraction outside (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"OHEM re-weighting: expected a fraction in (0, 1], got {fraction}")

    def reweight(kl: Tensor, g: Tensor, mask: Tensor) -> Tensor:
        # KL >= 0 up to rounding, so samples that do not count (-1) sort behind those that do
        most = math.ceil(kl.numel() * fraction)  # if all count; the number that do is not read back from the device
        ranked = torch.where(mask, at_least_float32(kl), -1.0).flatten().topk(most).values
        kept = (mask.sum().double() * fraction).ceil().long()
        chosen = torch.arange(most, device=kl.device) < kept
        return _masked_sum(ranked, None, chosen) / kept.clamp(min=1)

    return reweight


def focal(gamma: float = 2.0) -> Reweight:
    """Focal loss with a soft target: the mean of g^gamma KL, without gradient through g.

    Args:
        gamma: >= 0; 0 is the plain mean.

    Raises:
        ValueError: for gamma < 0, NaN or infinity.
    """
    if gamma < 0.0 or not math.isfinite(gamma):
        raise ValueError(f"focal re-weighting: expected gamma >= 0, got {gamma}")

    def reweight(kl: Tensor, g: Tensor, mask: Tensor) -> Tensor:
        weights = at_least_float32(g.detach()) ** gamma
        return _masked_sum(at_least_float32(kl), weights, mask) / mask.sum().clamp(min=1)

    return reweight


def _masked_sum(values: Tensor, weights: Tensor | None, mask: Tensor) -> Tensor:
    """Sum of values x weights over the mask; a NaN outside of it does not matter."""
    weighted = values if weights is None else values * weights
    return torch.where(mask, weighted, 0.0).sum()


def _count(index: Tensor, bins: int) -> Tensor:
    """How often each of 0..bins-1 occurs in `index`: [bins] int64.

    The samples are dealt out to LANES counters a bin, which are added up at the end. One counter a bin would be correct
    too, but most samples lie in bin 0, and a GPU performs the additions to one address one after the other.
    """
    lanes = min(LANES, max(index.numel(), 1))
    filling = -index.numel() % lanes
    index = F.pad(index.flatten(), (0, filling), value=bins).view(-1, lanes)  # [n / lanes, lanes]
    counts = index.new_zeros((bins + 1, lanes))  # one more bin for the filling
    return counts.scatter_add_(0, index, index.new_ones(()).expand_as(index)).sum(1)[:bins]
