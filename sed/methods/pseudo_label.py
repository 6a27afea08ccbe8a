"""The rival: hard pseudo-labels from a mean teacher, after Unbiased Teacher (ICLR 2021, arXiv 2102.09480).

The teacher detects on the weak view; what it is sure of becomes ground truth for the student on the strong view, with
the detector's own losses. As there, boxes are not trained on pseudo-labels. Named deviations, so that every method
here runs under equal conditions: cross-entropy instead of focal loss in the region head, this project's teacher
schedule (METHOD 7) and one view a labelled image instead of two. The half-size view (METHOD 11: the rival to beat) is
an option: the same pseudo-labels, halved, on the weak view at half its size, with the same losses and weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sed.core.structures import LabeledBatch, UnlabeledBatch
from sed.core.views import downscale
from sed.detectors.base import Detector
from sed.methods.base import Method, Schedule, statistics_kept
from sed.methods.labels import downscale_targets, predict_pseudo_labels


@dataclass(frozen=True)
class PseudoLabelOptions:
    """Unbiased Teacher's numbers.

    Attributes:
        threshold: least score, in [0, 1], of a detection that becomes a label.
        weight: on the unsupervised losses, beside n_u / n_s.
        box_loss: whether pseudo-labels also train the boxes.
        half_size: whether the pseudo-labels also train the half-size view.
    """

    threshold: float = 0.7
    weight: float = 4.0
    box_loss: bool = False
    half_size: bool = False


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
        o = self.options
        labels = predict_pseudo_labels(self.teacher.module, unlabeled.weak, o.threshold).objects
        weight = o.weight * len(unlabeled) / len(labeled) * self.schedule.ramp(step)
        views = {"pseudo": (unlabeled.strong, labels)}
        if o.half_size:
            weak = unlabeled.weak.pad_to_multiple(2 * self.student.size_divisibility)
            views["pseudo_half"] = (downscale(weak, 1), downscale_targets(labels))
        with statistics_kept(self.student):
            for term, (images, told) in views.items():
                for part, loss in self.student.supervised_losses(LabeledBatch(images, told)).items():
                    if part.endswith("_cls") or o.box_loss:
                        losses[f"{term}/{part}"] = weight * loss
        self.metrics["teacher_positives"] = torch.tensor(sum(len(t.classes) for t in labels))
        return losses
