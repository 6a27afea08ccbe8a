"""What a teacher's prediction says as a target: as it is (Eq. 3), sharpened, or as a hard label.

A target is a prediction's logits. Its hard form are logits of the most likely answer with probability 1, so that
D(t || p) = -log p of that answer: cross-entropy with a pseudo-label that no threshold has sifted; the rival of the
soft targets in Tab. 4 (METHOD 9). The paper does not tell its own form [O]. The temperature and the top class's mass
lie between the two [D].

Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sed.core.precision import at_least_float32

CERTAIN = 1e4  # a logit whose sigmoid or softmax is exactly 0 or 1, in every dtype


@dataclass(frozen=True)
class Sharpening:
    """From a prediction t to the target that is made of it; the defaults leave it as it is.

    Attributes:
        temperature: T > 0; t^(1/T), normalised again: logits / T. Below 1 it sharpens.
        top_mass: m in [0, 1], after the temperature: (1 - m) t + m times the hard label. 1 is the hard label.
    """

    temperature: float = 1.0
    top_mass: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"sharpening: expected a temperature > 0, got {self.temperature}")
        if not 0.0 <= self.top_mass <= 1.0:
            raise ValueError(f"sharpening: expected a top_mass in [0, 1], got {self.top_mass}")

    def sigmoid(self, logits: Tensor) -> Tensor:
        """Of sigmoid logits, any shape, each a Bernoulli vector; no gradient."""
        return self._apply(logits, softmax=False)

    def softmax(self, logits: Tensor) -> Tensor:
        """Of softmax logits [.., C]; no gradient."""
        return self._apply(logits, softmax=True)

    @torch.no_grad()
    def _apply(self, logits: Tensor, softmax: bool) -> Tensor:
        if self.top_mass == 1.0:
            return hard_softmax(logits) if softmax else hard_sigmoid(logits)
        if self.temperature != 1.0:
            logits = at_least_float32(logits) / self.temperature
        if self.top_mass == 0.0:
            return logits
        rest, logits = 1 - self.top_mass, at_least_float32(logits)
        if softmax:
            best = logits.argmax(-1, keepdim=True)
            top = torch.zeros_like(logits).scatter(-1, best, self.top_mass)
            return torch.log(rest * logits.softmax(-1) + top).clamp(min=-CERTAIN)
        top = self.top_mass * (logits > 0)
        odds = torch.log(rest * logits.sigmoid() + top) - torch.log(rest * (-logits).sigmoid() + (self.top_mass - top))
        return odds.clamp(-CERTAIN, CERTAIN)


@torch.no_grad()
def hard_sigmoid(logits: Tensor) -> Tensor:
    """Each class logit as certain: present above a probability of 0.5, else absent; any shape."""
    return torch.where(logits > 0, CERTAIN, -CERTAIN).to(logits.dtype)


@torch.no_grad()
def hard_softmax(logits: Tensor) -> Tensor:
    """The most likely class of the last dimension [.., C] as certain, the first of equal ones."""
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, -CERTAIN).scatter(-1, best, CERTAIN)
