"""Which pseudo-labels are kept, once more: by sorting lists, as the authors do it and as it was meant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def exact(values: Sequence[float], share: Fraction) -> int:
    """How many are kept: the top int(share n), at least one, and all that tie with the last."""
    if not values:
        return 0
    wanted = max(math.floor(share * len(values)), 1)
    last = sorted(values, reverse=True)[wanted - 1]
    return sum(value >= last for value in values)


def authors_of_class(values: Sequence[float], share: float) -> int:
    """DMT's and DST-CBC's code: ascending, and one further down than asked; >=."""
    ascending = sorted(values)
    if share >= 1:
        k = ascending[0]
    elif len(ascending) * share < 1:
        k = 0.00001
    else:
        k = ascending[-int(len(ascending) * share) - 1]
    return sum(value >= k for value in values)


def authors_of_all(values: Sequence[float], share: float) -> int:
    """The authors' classification code: ascending, one further up than asked; >."""
    k = 0 if share >= 1 else sorted(values)[int(-share * len(values) + 1)]
    return sum(value > k for value in values)


def renormalised(p: Sequence[float], k: Sequence[float]) -> int:
    """CBST's label: argmax p / k, or 255 where that is below 1."""
    q = [a / b for a, b in zip(p, k, strict=True)]
    return q.index(max(q)) if max(q) >= 1 else 255


def log_odds(z: Sequence[float], label: int) -> float:
    """log p - log(1 - p) of a label, from exact sums of exponentials."""
    others = math.fsum(math.exp(v - max(z)) for i, v in enumerate(z) if i != label)
    return z[label] - max(z) - math.log(others)
