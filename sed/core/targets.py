"""Hard targets: a prediction's most likely class as certain, the rival of Eq. 3's soft targets in Tab. 4.

A target is a prediction's logits. Its hard form are logits that give the most likely class the probability 1, so that
D(t || p) = -log p of that class: cross-entropy with a pseudo-label that no threshold has sifted (docs/method.md,
section 9; the paper does not say how its own are made [O]).

Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

import torch
from torch import Tensor

CERTAIN = 1e4  # a logit whose sigmoid or softmax is exactly 0 or 1, in every dtype


@torch.no_grad()
def harden_sigmoid(logits: Tensor) -> Tensor:
    """Each class logit as certain: present above a probability of 0.5, else absent; any shape."""
    return torch.where(logits > 0, CERTAIN, -CERTAIN).to(logits.dtype)


@torch.no_grad()
def harden_softmax(logits: Tensor) -> Tensor:
    """The most likely class of the last dimension [.., C] as certain, the first of equal ones."""
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, -CERTAIN).scatter(-1, best, CERTAIN)
