"""Hard targets of Tab. 4: the most likely class with probability 1, in the place of the teacher's distribution.

A target is given by its logits. Hard logits give the most likely class the probability 1, so that D(t || p) = -log p of
that class: the cross-entropy with a pseudo-label, without a score threshold. The paper does not say how it makes its
own [O] (docs/method.md 3).

Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

import torch
from torch import Tensor

CERTAIN = 1e4  # a logit whose sigmoid or softmax is exactly 1, and 0 for its negative, in every dtype


@torch.no_grad()
def harden_sigmoid(logits: Tensor) -> Tensor:
    """Sigmoid logits of any shape with each probability rounded to 0 or 1: 1 above 0.5."""
    return torch.where(logits > 0, CERTAIN, -CERTAIN).to(logits.dtype)


@torch.no_grad()
def harden_softmax(logits: Tensor) -> Tensor:
    """Softmax logits [.., C] with probability 1 for the most likely class, the first of equal ones."""
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, -CERTAIN).scatter(-1, best, CERTAIN)
