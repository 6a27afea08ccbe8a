"""Hard targets of Tab. 4: certain classes in the place of the teacher's distribution.

A target is given by its logits. Softmax: the most likely class gets the probability 1, so that D(t || p) = -log p of
that class. Sigmoid: each class logit is rounded, so an anchor may have several certain classes or none. The paper does
not say how it makes its own [O] (docs/method.md 3).

Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from sed.core.structures import DenseLevel, QueryPrediction, RegionPrediction

CERTAIN = 1e4  # a logit whose sigmoid or softmax is exactly 1, and 0 for its negative, in every dtype


Prediction = TypeVar("Prediction", DenseLevel, RegionPrediction, QueryPrediction)


def is_softmax(prediction: DenseLevel | RegionPrediction | QueryPrediction) -> bool:
    """Whether the class logits of a prediction are a softmax's, background last; else each is a sigmoid's."""
    return isinstance(prediction, RegionPrediction) or (isinstance(prediction, QueryPrediction) and prediction.softmax)


def harden(prediction: Prediction) -> Prediction:
    """The same prediction with certain classes."""
    hard = harden_softmax if is_softmax(prediction) else harden_sigmoid
    return replace(prediction, logits=hard(prediction.logits))


@torch.no_grad()
def harden_sigmoid(logits: Tensor) -> Tensor:
    """Sigmoid logits of any shape with each probability rounded to 0 or 1: 1 above 0.5."""
    return torch.where(logits > 0, CERTAIN, -CERTAIN).to(logits.dtype)


@torch.no_grad()
def harden_softmax(logits: Tensor) -> Tensor:
    """Softmax logits [.., C] with probability 1 for the most likely class, the first of equal ones."""
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, -CERTAIN).scatter(-1, best, CERTAIN)
