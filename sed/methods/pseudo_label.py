"""Pseudo-labels from a mean teacher, after Unbiased Teacher (ICLR 2021, arXiv 2102.09480): the baseline to beat.

The teacher detects on the weak view; its confident detections are ground truth for the student on the strong view,
with the detector's own losses. As there, boxes are not trained on pseudo-labels by default. Deviations, so that every
method here runs under equal conditions: cross-entropy instead of focal loss in the region head, this project's
schedule of the teacher (docs/method.md, section 7) and one view of a labelled image instead of two. The half-size view
is an option: the same pseudo-labels, downscaled, on the weak view at half its size, with the same losses and weight.

Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sed.core.boxes import scale_boxes
from sed.core.structures import Detections, Images, LabeledBatch, Targets, UnlabeledBatch
from sed.core.views import downscale
from sed.detectors.base import Detector, Features
from sed.methods.base import Method, Schedule, full_precision, statistics_kept
from sed.options.methods import PseudoLabelOptions, SEDPlusOptions

_ALL = 1_000_000  # proposals: as many as there are


class PseudoLabels(NamedTuple):
    """The teacher's confident detections in N images, and of a two-stage teacher what it detected them with.

    Attributes:
        targets: N Targets in the frame of the weak view, often empty.
        features: of the weak view; None without a region head.
        proposals: N tensors [P_i, 4]; empty without a region head.
    """

    targets: tuple[Targets, ...]
    features: Features | None
    proposals: list[Tensor]


@torch.no_grad()
def predict_pseudo_labels(teacher: Detector, images: Images, threshold: float) -> PseudoLabels:
    """Detect with the teacher and keep what it is confident of.

    Args:
        teacher: in eval mode.
        images: the weak view.
        threshold: least score, in [0, 1].
    """
    with full_precision(images.tensor):
        if "region" not in teacher.heads:
            return PseudoLabels(confident_targets(teacher.detect(images), threshold), None, [])
        features = teacher.encode(images.pad_to_multiple(teacher.size_divisibility))
        proposals = teacher.propose(features, teacher.dense(features), _ALL)
        detections = teacher.detect_from(features, proposals)
        return PseudoLabels(confident_targets(detections, threshold), features, proposals)


def confident_targets(detections: Sequence[Detections], threshold: float) -> tuple[Targets, ...]:
    """The detections of at least the threshold's score (in [0, 1]) and with an extent, one Targets an image.

    Boxes are float32, whatever autocast made of them: half precision rounds them by pixels.
    """
    targets = []
    for row in detections:
        boxes = row.boxes.float()
        confident = (row.scores >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        targets.append(Targets(boxes[confident], row.classes[confident]))
    return tuple(targets)


def downscale_targets(targets: Sequence[Targets], s: int = 1) -> tuple[Targets, ...]:
    """The targets of the same images at 1/2^s of their size."""
    return tuple(Targets(scale_boxes(t.boxes, 1 / 2**s), t.classes) for t in targets)


class StudentView(NamedTuple):
    """A view that the student is trained on: at 1/2^s of the size, with a weight."""

    name: str
    weight: float
    images: Images
    s: int


class PseudoLabel(Method):
    """L = L_sup + (n_u / n_s) weight L_sup(X_s, pseudo-labels of the teacher on X_w), and X^ likewise if asked."""

    options: PseudoLabelOptions | SEDPlusOptions

    def __init__(self, student: Detector, schedule: Schedule, options: PseudoLabelOptions | None = None) -> None:
        super().__init__(student, schedule)
        self.options = options or PseudoLabelOptions()

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, step: int) -> dict[str, Tensor]:
        """See `Method.forward`."""
        losses = self.supervised(labeled)
        if unlabeled is None:
            return losses
        pseudo = predict_pseudo_labels(self.teacher.module, unlabeled.weak, self.options.threshold)
        ratio = len(unlabeled) / len(labeled) * self.schedule.ramp(step)  # n_u / n_s
        with statistics_kept(self.student):
            for view in self.views(unlabeled):
                for part, loss in self.view_losses(view, pseudo).items():
                    losses[f"{view.name}/{part}"] = ratio * view.weight * loss
        self.metrics["teacher_positives"] = torch.tensor(sum(len(t.classes) for t in pseudo.targets))
        return losses

    def views(self, unlabeled: UnlabeledBatch) -> list[StudentView]:
        """What the student is trained on."""
        views = [StudentView("pseudo", self.options.weight, unlabeled.strong, 0)]
        if self.options.half_size:
            views.append(StudentView("pseudo_half", self.options.weight, self.half_size(unlabeled), 1))
        return views

    def half_size(self, unlabeled: UnlabeledBatch) -> Images:
        """X^: the weak view at half its size."""
        return downscale(unlabeled.weak.pad_to_multiple(2 * self.student.size_divisibility), 1)

    def view_losses(self, view: StudentView, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """The detector's own losses on a view with the pseudo-labels as its ground truth."""
        batch = LabeledBatch(view.images, downscale_targets(pseudo.targets, view.s))
        losses = self.student.supervised_losses(batch)
        return {name: loss for name, loss in losses.items() if name.endswith("_cls") or self.options.box_loss}
