"""The dynamic loss: cross-entropy weighted by how far two models agree (DMT, papers/003, Eq. 6; DST-CBC, papers/004).

Model A made the labels before the training, model B is being trained on them. For each pixel (classification: image)
y_A and c_A are A's label and its confidence, p B's softmax, y_B = argmax p, c_B = max p, p_B = p[y_A]:

    case 1    y_A = y_B                   weight p_B^gamma1
    case 2    y_A != y_B, c_A >= c_B      weight p_B^gamma2
    case 3    y_A != y_B, c_A < c_B       weight 0

Weights are constants: no gradient flows through them. The paper's gamma ramp has a positive exponent (section
4.2.1); the authors' code has the minus that a ramp needs, and so has this.

Shape shorthand: B images, C classes, * = () for classification or (H, W) for segmentation; label 255 = ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = 255  # the label of a pixel that counts nowhere
KINDS = ("three_case", "naive", "flip", "stored", "threshold")


@dataclass(frozen=True)
class Weighted:
    """What each pixel counts, without gradient.

    Attributes:
        weight: [B, *] in [0, 1], float32 (float64 for float64 logits); 1 on labelled images, 0 where ignored.
        labels: [B, *] int64, the targets: those given, but for "flip".
        case: [B, *] int64, 1 to 3 as above; of no meaning where ignored or labelled.
    """

    weight: Tensor
    labels: Tensor
    case: Tensor


def dynamic_weight(
    logits: Tensor,
    labels: Tensor,
    confidence: Tensor,
    pseudo: Tensor,
    *,
    kind: str,
    gamma1: float,
    gamma2: float,
    threshold: float = 0.9,
) -> Weighted:
    """The weight of every pixel; by `kind`, on pseudo-labelled images.

    three_case: the cases above. naive: p_B^gamma1 always (the loss of DST; DMT-Naive). flip: case 3 learns y_B
    instead, with weight (1 - c_A)^gamma2 (DMT-Flip). stored: c_A^gamma1 (DST-CBC's OW). threshold: 1 where c_A >=
    threshold, else 0. With gamma1 = gamma2 = 0, three_case and flip are plain cross-entropy in all cases, as in the
    authors' code: so CBST and curriculum labelling are the same run with gammas of 0.

    Args:
        logits: [B, C, *] of model B.
        labels: [B, *] int64, y_A or ground truth; 255 ignored.
        confidence: [B, *] floating, c_A in [0, 1]; not looked at on labelled images.
        pseudo: [B] bool, whose labels are pseudo-labels.
        kind: one of KINDS.
        gamma1: exponent of case 1, >= 0.
        gamma2: exponent of case 2, >= 0.
        threshold: least confidence of "threshold".

    Raises:
        ValueError: for an unknown kind, a negative gamma or shapes that do not fit.
    """
    _check(logits, labels, confidence, pseudo, kind, gamma1, gamma2)
    return _weigh(_log_softmax(logits.detach()), labels, confidence, pseudo, kind, gamma1, gamma2, threshold)


def dynamic_loss(
    logits: Tensor,
    labels: Tensor,
    confidence: Tensor,
    pseudo: Tensor,
    *,
    kind: str,
    gamma1: float,
    gamma2: float,
    threshold: float = 0.9,
    total: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """sum(weight * cross-entropy) / N of a batch of pseudo-labelled and labelled images.

    N counts all pixels that are not ignored, labelled ones and those of weight 0 included, as the authors' code does
    (DMT's Eq. 7 leaves N open, DST-CBC's Eq. 1 has none). Computed in float32 at least, autocast or not.

    Args:
        logits: as for `dynamic_weight`, and so are all but the last.
        labels: [B, *] int64.
        confidence: [B, *] floating.
        pseudo: [B] bool.
        kind: one of KINDS.
        gamma1: exponent of case 1.
        gamma2: exponent of case 2.
        threshold: least confidence of "threshold".
        total: N as a scalar tensor, where it is counted over several batches or processes.

    Returns:
        The loss, a differentiable 0 where N = 0; and scalars without gradient over the pseudo-labelled pixels that are
        not ignored, all 0 where there are none: "weight" (mean) and the shares of the cases, "agree" (1),
        "labeler_wins" (2) and "learner_wins" (3).

    Raises:
        ValueError: as for `dynamic_weight`.
    """
    _check(logits, labels, confidence, pseudo, kind, gamma1, gamma2)
    log_p = _log_softmax(logits)  # [B, C, *]
    found = _weigh(log_p.detach(), labels, confidence, pseudo, kind, gamma1, gamma2, threshold)
    loss = (found.weight * -_at(log_p, found.labels)).sum()
    counted = labels != IGNORED
    loss = loss / (counted.sum().clamp(min=1) if total is None else total.clamp(min=1e-9))
    learned = (counted & _like(pseudo, labels)).to(found.weight.dtype)
    number = learned.sum().clamp(min=1)
    metrics = {"weight": (found.weight * learned).sum() / number}
    for case, name in enumerate(("agree", "labeler_wins", "learner_wins"), 1):
        metrics[name] = ((found.case == case) * learned).sum() / number
    return loss, metrics


def mixed_loss(logits: Tensor, labels_a: Tensor, labels_b: Tensor, weight: Tensor, share: float) -> Tensor:
    """sum_i w'_i (share CE(y_i^a) + (1 - share) CE(y_i^b)) / B, of mixed images (classification).

    Args:
        logits: [B, C] of the mixed images.
        labels_a: [B] int64, of the images with `share`.
        labels_b: [B] int64, of those mixed in.
        weight: [B], already mixed (`mix_weights`).
        share: lambda in [0, 1].

    Returns:
        A scalar in float32 at least; a differentiable 0 for B = 0.
    """
    logits = _at_least_float32(logits)
    parts = [cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED) for labels in (labels_a, labels_b)]
    return (weight * (share * parts[0] + (1 - share) * parts[1])).sum() / max(len(logits), 1)


def mix_share(rng: np.random.Generator, alpha: float, keep_max: bool = True) -> float:
    """Lambda ~ Beta(alpha, alpha), one for a batch; with keep_max the greater of lambda and 1 - lambda. alpha 0: 1."""
    share = float(rng.beta(alpha, alpha)) if alpha > 0 else 1.0
    return max(share, 1 - share) if keep_max else share


def mix_weights(weight: Tensor, permutation: Tensor, share: float) -> Tensor:
    """The mixed weights w' = share w + (1 - share) w[permutation], all [B]."""
    return share * weight + (1 - share) * weight[permutation]


def gamma_ramp(step: int, steps: int, gamma_max: float) -> float:
    """gamma_max exp(-5 (1 - t/T)^2) at step t of T (see the head of this file for the sign).

    Raises:
        ValueError: for steps < 1.
    """
    if steps < 1:
        raise ValueError(f"gamma ramp: expected steps >= 1, got {steps}")
    where = min(max(step / steps, 0.0), 1.0)
    return gamma_max * math.exp(-5 * (1 - where) ** 2)


def _weigh(
    log_p: Tensor,
    labels: Tensor,
    confidence: Tensor,
    pseudo: Tensor,
    kind: str,
    gamma1: float,
    gamma2: float,
    threshold: float,
) -> Weighted:
    """`dynamic_weight` from log p [B, C, *] without gradient."""
    counted, pseudo = labels != IGNORED, _like(pseudo, labels)
    top, y_b = log_p.max(1)
    p_b, c_a = _at(log_p, labels).exp(), confidence.to(log_p.dtype)
    agree = labels == y_b
    learner_wins = ~agree & (c_a < top.exp())
    case = torch.where(agree, 1, torch.where(learner_wins, 3, 2))
    if kind == "threshold":
        weight = (c_a >= threshold).to(log_p.dtype)
    elif kind == "stored":
        weight = c_a.pow(gamma1)
    elif kind == "naive":
        weight = p_b.pow(gamma1)
    elif gamma1 == gamma2 == 0:  # three_case and flip
        weight = torch.ones_like(p_b)
    else:
        weight = torch.where(agree, p_b.pow(gamma1), p_b.pow(gamma2))
        if kind == "flip":
            weight = torch.where(learner_wins, (1 - c_a).pow(gamma2), weight)
            labels = torch.where(learner_wins & pseudo & counted, y_b, labels)
        else:
            weight = weight.masked_fill(learner_wins, 0.0)
    weight = weight.masked_fill(~pseudo, 1.0).masked_fill(~counted, 0.0)
    return Weighted(weight, labels, case)


def _at(log_p: Tensor, labels: Tensor) -> Tensor:
    """The log p of the labels [B, *]; class 0 stands in for 255."""
    return log_p.gather(1, labels.masked_fill(labels == IGNORED, 0)[:, None]).squeeze(1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _log_softmax(logits: Tensor) -> Tensor:
    return _at_least_float32(logits).log_softmax(1)


def _like(pseudo: Tensor, labels: Tensor) -> Tensor:
    """[B] as [B, 1, 1] or [B], to go with labels [B, *]."""
    return pseudo.reshape(-1, *[1] * (labels.ndim - 1))


def _check(
    logits: Tensor, labels: Tensor, confidence: Tensor, pseudo: Tensor, kind: str, gamma1: float, gamma2: float
) -> None:
    if kind not in KINDS:
        raise ValueError(f"dynamic weight: expected one of {', '.join(KINDS)}, got {kind!r}")
    if gamma1 < 0 or gamma2 < 0:
        raise ValueError(f"dynamic weight: expected gammas >= 0, got {gamma1} and {gamma2}")
    wanted = (logits.shape[0], *logits.shape[2:])
    if labels.shape != wanted or confidence.shape != wanted or pseudo.shape != wanted[:1]:
        raise ValueError(
            f"dynamic weight: logits {tuple(logits.shape)} go with labels and confidence {wanted} and "
            f"pseudo {wanted[:1]}; got {tuple(labels.shape)}, {tuple(confidence.shape)} and {tuple(pseudo.shape)}"
        )
