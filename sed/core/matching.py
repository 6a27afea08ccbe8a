"""Queries (the DETR family): matching those of two views (Alg. 1), and Eq. 2 and Eq. 3 over the matched pairs.

A query is not tied to a place in the image. So before Eq. 2 or Eq. 3 can compare two views, their queries are matched,
image by image, by the Hungarian algorithm on the cost (docs/method.md 5)

    cost[i, j] = JS(p1_i, p2_j) + lambda (1 - GIoU(b1_i, b2_j))

JS is the Jensen-Shannon divergence with natural logarithms. For a sigmoid head it is the sum over the K classes of the
JS of their Bernoulli vectors [p, 1 - p], as a class logit is a Bernoulli vector in Eq. 2 and 3 too (docs/method.md 3)
[O].

Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sed.core.boxes import corners, giou_matrix
from sed.core.consistency import ConsistencyLoss, box_distance
from sed.core.divergence import bernoulli_disagreement, bernoulli_kl, categorical_disagreement, categorical_kl
from sed.core.precision import at_least_float32
from sed.core.reweighting import Reweight
from sed.core.structures import QueryPrediction

QueryPair = tuple[QueryPrediction, QueryPrediction]
_IMPOSSIBLE = 1e9  # replaces a cost of NaN or infinity: such a pair is matched only where no other is left


@torch.no_grad()
def match_cost(one: QueryPrediction, other: QueryPrediction, iou_weight: float = 1.0) -> Tensor:
    """The cost of Alg. 1 for every pair of queries of an image: [N, Q, Q], rows are the queries of `one`, no gradient.

    Args:
        one: N images.
        other: the same images in another view.
        iou_weight: lambda.

    Raises:
        ValueError: for views of unequal shapes.
    """
    _check_shapes(one, other)
    boxes = (corners(at_least_float32(view.boxes)) for view in (one, other))
    cost = iou_weight * (1 - giou_matrix(*boxes))  # [N, Q, Q]
    # One image at a time: all pairs of 300 queries and 80 classes are 7 million numbers already
    for image, a, b in zip(cost, one.logits, other.logits, strict=True):
        image += _js(a, b, one.softmax)
    return cost


@torch.no_grad()
def match_views(pairs: Sequence[QueryPair], iou_weight: float = 1.0) -> list[Tensor]:
    """Alg. 1 for all pairs of views of a step together, so that the costs are copied to the CPU once.

    Args:
        pairs: (one, other) views of the same images, all with the same Q.
        iou_weight: lambda.

    Returns:
        For each pair of views [N, Q] int64 on their device: in image n, query i of `one` is matched with query [n, i]
        of `other`; each row is a permutation. A query with NaN gets whatever partner is left, and its loss is NaN too.

    Raises:
        ValueError: for views of unequal shapes.
    """
    if not pairs:
        return []
    costs = torch.cat([match_cost(one, other, iou_weight) for one, other in pairs])  # [N of all pairs, Q, Q]
    costs = costs.nan_to_num(_IMPOSSIBLE, _IMPOSSIBLE, _IMPOSSIBLE)
    partners = torch.empty(costs.shape[:2], dtype=torch.int64)
    for row, cost in zip(partners, costs.cpu(), strict=True):  # the one transfer
        row.copy_(torch.as_tensor(linear_sum_assignment(cost)[1]))
    counts = [len(one.logits) for one, _ in pairs]
    return list(torch.split(partners.to(costs.device, non_blocking=True), counts))


def query_consistency(
    target: QueryPrediction,
    student: QueryPrediction,
    partners: Tensor,
    reweight: Reweight,
    symmetric: bool,
) -> ConsistencyLoss:
    """The consistency loss of the matched queries of all images: Eq. 3, or Eq. 2 if `symmetric` (docs/method.md 5).

    Softmax head: a query is one sample of D, over K + 1 classes. Sigmoid head: each of its K classes is one. The box
    term is the mean over queries of the squared difference, summed over the normalised (cx, cy, w, h).

    Args:
        target: the target's predictions of N images.
        student: the student's predictions of the same images in its own view.
        partners: [N, Q] of `match_views(target, student)`.
        reweight: turns the samples of D into a scalar.
        symmetric: as for `sed.core.consistency.dense_consistency`.

    Raises:
        ValueError: for views of unequal shapes.
    """
    _check_shapes(target, student)
    index = partners[..., None]  # [N, Q, 1]
    logits = student.logits.gather(1, index.expand_as(student.logits))  # [N, Q, C] in the target's order
    boxes = student.boxes.gather(1, index.expand_as(student.boxes))
    divergence = categorical_kl if target.softmax else bernoulli_kl
    disagreement = categorical_disagreement if target.softmax else bernoulli_disagreement
    kl = divergence(target.logits, logits)  # [N, Q] or [N, Q, K]
    if symmetric:
        kl = kl + divergence(logits, target.logits)
    cls = reweight(kl, disagreement(target.logits, logits), torch.ones_like(kl, dtype=torch.bool))
    distance = box_distance(target.boxes, boxes, symmetric)  # [N, Q]
    return ConsistencyLoss(cls, distance.sum() / max(distance.numel(), 1))


def _js(one: Tensor, other: Tensor, softmax: bool) -> Tensor:
    """Jensen-Shannon divergence [Q, Q] of logits [Q, C] and [Q, C]: H((p1 + p2) / 2) - (H(p1) + H(p2)) / 2."""
    p1, p2 = (_probabilities(logits, softmax) for logits in (one, other))
    middle = (p1[:, None] + p2[None, :]) / 2  # [Q, Q, C]
    return _entropy(middle, softmax) - (_entropy(p1, softmax)[:, None] + _entropy(p2, softmax)[None, :]) / 2


def _probabilities(logits: Tensor, softmax: bool) -> Tensor:
    logits = at_least_float32(logits)
    return logits.softmax(-1) if softmax else logits.sigmoid()


def _entropy(p: Tensor, softmax: bool) -> Tensor:
    """Entropy H [..] of the vectors p [.., C]; without `softmax` the sum of the entropies of C Bernoulli vectors."""
    entropy: Tensor = torch.special.entr(p)
    if not softmax:
        entropy += torch.special.entr(1 - p)
    return torch.sum(entropy, -1)


def _check_shapes(one: QueryPrediction, other: QueryPrediction) -> None:
    if one.logits.shape != other.logits.shape or one.softmax != other.softmax:
        raise ValueError(
            f"views of unequal shapes: one has {tuple(one.logits.shape)} logits (softmax {one.softmax}), the other "
            f"{tuple(other.logits.shape)} (softmax {other.softmax}); [N, Q, C] must be equal: predict both with the "
            "same kind of detector, with as many queries"
        )
