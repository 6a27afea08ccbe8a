"""The pseudo-label baseline: a mean teacher by Unbiased Teacher's rules (ICLR 2021, arXiv 2102.09480).

    L = L_sup + (n_u / n_s) weight L_det(X_s, pseudo-labels)

The teacher's confident detections on the weak view X_w are ground truth for the student on the strong view X_s; L_det
are the detector's own losses. As in Unbiased Teacher, pseudo-labels do not train the boxes by default. Deviations, so
that all methods here run under equal conditions: cross-entropy instead of focal loss in the region head, the teacher of
docs/method.md 7, and one view of a labelled image instead of two. As an option the same pseudo-labels, at half their
size, also train the half-size view X^, with the same losses and weight (docs/method.md 11).

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

_ALL = 1_000_000  # more proposals than a detector makes: no limit of its own


class PseudoLabels(NamedTuple):
    """The teacher's confident detections in N images; with a region head also the features and proposals behind them.

    Attributes:
        targets: N Targets in the frame of the weak view; an image may have none.
        features: the teacher's, of the weak view; None without a region head.
        proposals: the teacher's, N tensors [P_i, 4], best first; an empty list without a region head.
    """

    targets: tuple[Targets, ...]
    features: Features | None
    proposals: list[Tensor]


@torch.no_grad()
def predict_pseudo_labels(teacher: Detector, images: Images, threshold: float) -> PseudoLabels:
    """The teacher's detections with a score of at least `threshold`, as pseudo-labels; computed in float32.

    Args:
        teacher: in eval mode.
        images: the weak view X_w, N images.
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
    """The detections with a score of at least `threshold` (in [0, 1]), as ground truth: one Targets an image.

    Boxes without width or height are left out. Boxes are float32 also under autocast: half precision would round them
    by whole pixels.
    """
    targets = []
    for row in detections:
        boxes = row.boxes.float()
        confident = (row.scores >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        kept = confident.nonzero().squeeze(1)  # one wait for the GPU, where a mask as an index is one an indexing
        targets.append(Targets(boxes[kept], row.classes[kept]))
    return tuple(targets)


def scale_targets(targets: Sequence[Targets], scale: float) -> tuple[Targets, ...]:
    """Ground truth of the same images at `scale` times their size."""
    return tuple(Targets(scale_boxes(t.boxes, scale), t.classes) for t in targets)


class StudentView(NamedTuple):
    """An unlabelled view that the student is trained on.

    name: of its losses.
    weight: of its losses, beside n_u / n_s.
    scale: its size, as a share of the weak view's.
    """

    name: str
    weight: float
    images: Images
    scale: float


class PseudoLabel(Method):
    """L = L_sup + (n_u / n_s) weight L_det(X_s, pseudo-labels); with `half_size` also on X^."""

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
        ratio = len(unlabeled) / len(labeled) * self.schedule.ramp(step)  # n_u / n_s, times the ramp
        with statistics_kept(self.student):
            for view in self.views(unlabeled, step):
                for part, loss in self.view_losses(view, pseudo).items():
                    losses[f"{view.name}/{part}"] = ratio * view.weight * loss
        self.metrics["teacher_positives"] = torch.tensor(sum(len(t.classes) for t in pseudo.targets))
        return losses

    def views(self, unlabeled: UnlabeledBatch, step: int) -> list[StudentView]:
        """The unlabelled views that the student is trained on at a step."""
        views = [StudentView("pseudo", self.options.weight, unlabeled.strong, 1.0)]
        if self.options.half_size:
            views.append(StudentView("pseudo_half", self.options.weight, self.half_size(unlabeled), 0.5))
        return views

    def half_size(self, unlabeled: UnlabeledBatch) -> Images:
        """X^: the weak view at half its size."""
        return downscale(unlabeled.weak.pad_to_multiple(2 * self.student.size_divisibility), 1)

    def view_losses(self, view: StudentView, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """The detector's own losses on a view with the pseudo-labels as its ground truth."""
        batch = LabeledBatch(view.images, scale_targets(pseudo.targets, view.scale))
        losses = self.student.supervised_losses(batch)
        return {name: loss for name, loss in losses.items() if name.endswith("_cls") or self.options.box_loss}
