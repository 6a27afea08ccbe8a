"""The supervised baseline: labelled images only, all else as in the other methods (steps, augmentation, teacher)."""

from __future__ import annotations

from torch import Tensor

from sed.core.structures import LabeledBatch, UnlabeledBatch
from sed.methods.base import Method


class Supervised(Method):
    """L = L_sup. The teacher is the plain moving average of the student."""

    uses_unlabeled = False

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, step: int) -> dict[str, Tensor]:
        """See `Method.forward`; `unlabeled` is not used."""
        return self.supervised(labeled)
