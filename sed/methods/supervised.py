"""The supervised baseline: labelled images only, with the same steps, augmentation and teacher as the other methods."""

from __future__ import annotations

from torch import Tensor

from sed.core.structures import LabeledBatch, UnlabeledBatch
from sed.methods.base import Method


class Supervised(Method):
    """L = L_sup. The teacher is the moving average of the student; no loss uses it."""

    uses_unlabeled = False

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, step: int) -> dict[str, Tensor]:
        """See `Method.forward`; `unlabeled` is not used."""
        return self.supervised(labeled)
