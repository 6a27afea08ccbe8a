"""The rival: hard pseudo-labels from a mean teacher, after Unbiased Teacher (ICLR 2021, arXiv 2102.09480).

The teacher detects on the weak view; what it is sure of becomes ground truth for the student on the strong view, with
the detector's own losses. As there, boxes are not trained on pseudo-labels. Named deviations, so that every method
here runs under equal conditions: cross-entropy instead of focal loss in the region head, this project's teacher
schedule (METHOD 7) and one view a labelled image instead of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sed.core.structures import Images, LabeledBatch, Targets, UnlabeledBatch
from sed.detectors.base import Detector
from sed.methods.base import Method, Schedule, statistics_kept


@dataclass(frozen=True)
class PseudoLabelOptions:
    """Unbiased Teacher's numbers.

    Attributes:
        threshold: least score, in [0, 1], of a detection that becomes a label.
        weight: on the unsupervised losses, beside n_u / n_s.
        box_loss: whether pseudo-labels also train the boxes.
    """

    threshold: float = 0.7
    weight: float = 4.0
    box_loss: bool = False


class PseudoLabel(Method):
    """L = L_sup + (n_u / n_s) weight L_sup(X_s, hard labels of the teacher on X_w)."""

    def __init__(self, student: Detector, schedule: Schedule, options: PseudoLabelOptions) -> None:
        super().__init__(student, schedule)
        self.options = options

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, step: int) -> dict[str, Tensor]:
        """See `Method.forward`."""
        losses = self.supervised(labeled)
        if unlabeled is None:
            return losses
        targets = self.pseudo_labels(unlabeled.weak)
        weight = self.options.weight * len(unlabeled) / len(labeled) * self.schedule.ramp(step)
        with statistics_kept(self.student):
            parts = self.student.supervised_losses(LabeledBatch(unlabeled.strong, targets))
        for part, loss in parts.items():
            if part.endswith("_cls") or self.options.box_loss:
                losses[f"pseudo/{part}"] = weight * loss
        self.metrics["teacher_positives"] = torch.tensor(sum(len(t.classes) for t in targets))
        return losses

    @torch.no_grad()
    def pseudo_labels(self, weak: Images) -> tuple[Targets, ...]:
        """The teacher's detections with at least the threshold's score, one Targets an image (often empty)."""
        labels = []
        for found in self.teacher.module.detect(weak):
            sure = found.scores >= self.options.threshold
            labels.append(Targets(found.boxes[sure], found.classes[sure]))
        return tuple(labels)
