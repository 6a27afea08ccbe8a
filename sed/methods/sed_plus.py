"""SED plus: pseudo-labels on both scales; the teacher's class distribution is the target of regions. Not the paper's.

    L = L_sup + (n_u / n_s) (weight L_det(X_s) + half_size_weight L_det(X^))                  docs/method.md 11

X_s may have a size of its own in every step (least_scale). L_det are the detector's own losses with the teacher's
confident detections on X_w as ground truth, as in `sed.methods.pseudo_label`; only the region head has other targets. A
hard target, one class or background, is plainly wrong where the teacher took one class for another or missed an object.
So a region on a pseudo-label learns its box and the teacher's distribution over the classes, and a region away from all
pseudo-labels the teacher's own soft prediction.
Measured so far, that is no gain over hard classes (docs/evidence.md).

Shape shorthand: see `sed.core.structures`; P regions and G pseudo-labels of one image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sed.core.boxes import BoxCoderWeights, encode_boxes, iou_matrix
from sed.core.consistency import absolute_error, region_consistency
from sed.core.reweighting import mean
from sed.core.structures import LabeledBatch, RegionPrediction, UnlabeledBatch
from sed.core.targets import CERTAIN, harden_softmax
from sed.core.views import draw_size, resize
from sed.detectors.base import Detector
from sed.methods.base import Schedule, full_precision
from sed.methods.pseudo_label import PseudoLabel, PseudoLabels, StudentView, scale_targets
from sed.options.methods import SEDPlusOptions

ON, NEAR = 0.5, 0.1  # least IoU of a region with a pseudo-label: to take its target from it; to be background


class SEDPlus(PseudoLabel):
    """Pseudo-labels on the strong and on the half-size view, with soft targets for a region head."""

    options: SEDPlusOptions

    def __init__(self, student: Detector, schedule: Schedule, options: SEDPlusOptions | None = None) -> None:
        super().__init__(student, schedule)
        self.options = options or SEDPlusOptions()

    def views(self, unlabeled: UnlabeledBatch, step: int) -> list[StudentView]:
        """The half-size view and the strong view at the size of this step, where their weight is not 0."""
        o, views = self.options, []
        if o.half_size_weight > 0:
            views.append(StudentView("pseudo_half", o.half_size_weight, self.half_size(unlabeled), 0.5))
        if o.weight > 0:
            scale = draw_size(step, o.least_scale, self.schedule.seed)
            views.append(StudentView("pseudo", o.weight, resize(unlabeled.strong, scale), scale))
        return views

    def view_losses(self, view: StudentView, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """The losses on a view; regions are the proposals of teacher and student, and the pseudo-labels' boxes."""
        targets, student = scale_targets(pseudo.targets, view.scale), self.student
        if "region" not in student.heads:
            return student.supervised_losses(LabeledBatch(view.images, targets))
        features = student.encode(view.images.pad_to_multiple(student.size_divisibility))
        losses, proposals = student.proposal_losses(features, targets)
        most, rows = self.options.regions_per_view, zip(pseudo.proposals, proposals, pseudo.targets, strict=True)
        boxes = [torch.cat([p[:most], q[:most] / view.scale, t.boxes]) for p, q, t in rows]  # frame of X
        target = region_targets(self.teacher.module, pseudo, boxes, hard=self.options.region_target == "hard")
        own = student.regions(features, [b * view.scale for b in boxes])
        loss = region_consistency(target, own, mean(), symmetric=False, distance=absolute_error)
        return losses | {"region_cls": loss.cls, "region_box": loss.box}


@torch.no_grad()
def region_targets(teacher: Detector, pseudo: PseudoLabels, boxes: Sequence[Tensor], *, hard: bool) -> RegionPrediction:
    """The targets of regions: the teacher's predictions of them, corrected by its pseudo-labels.

    Args:
        teacher: the one that made the pseudo-labels.
        pseudo: of N images.
        boxes: N tensors [P_i, 4], the regions of each image, the boxes of its pseudo-labels last; in the frame of X_w.
        hard: whether the class target is the teacher's most likely class instead of its distribution.
    """
    features = pseudo.features
    assert features is not None
    with full_precision(features.images.tensor):
        predicted = teacher.regions(features, boxes)
    parts = []
    split = zip(boxes, predicted.logits.split(predicted.counts), predicted.deltas.split(predicted.counts), strict=True)
    for (regions, logits, deltas), objects in zip(split, pseudo.targets, strict=True):
        classes = logits[len(regions) - len(objects.boxes) :].clone()
        classes[:, -1] = -CERTAIN  # background excluded
        if hard:
            logits, classes = harden_softmax(logits), harden_softmax(classes)
        own = RegionPrediction(logits, deltas, (len(regions),))
        parts.append(
            correct_by_pseudo_labels(regions, own, objects.boxes, classes, teacher.box_coder_weights["region"])
        )
    logits, deltas = (torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "deltas"))
    return RegionPrediction(logits, deltas, predicted.counts)


@torch.no_grad()
def correct_by_pseudo_labels(
    regions: Tensor, predicted: RegionPrediction, objects: Tensor, classes: Tensor, weights: BoxCoderWeights
) -> RegionPrediction:
    """The targets of the P regions of an image, by the pseudo-label of largest IoU with each, the first of equal ones.

        IoU >= 0.5         class: the distribution at the pseudo-label; box: the pseudo-label's
        0.1 <= IoU < 0.5   class: background with probability 1; no box
        IoU < 0.1          class and box: the teacher's own prediction of the region

    Args:
        regions: boxes [P, 4].
        predicted: the teacher's predictions of them.
        objects: boxes [G, 4] of the pseudo-labels, in the same frame; G may be 0.
        classes: class logits [G, K + 1] at the pseudo-labels, background excluded (a logit of -CERTAIN).
        weights: the box coder's, of the deltas.
    """
    if not len(objects):
        return predicted
    overlap, which = iou_matrix(regions, objects).max(1)  # [P]
    on, near = overlap >= ON, overlap >= NEAR
    background = torch.full_like(predicted.logits, -CERTAIN)
    background[:, -1] = CERTAIN
    logits = torch.where(near[:, None], background, predicted.logits)
    logits = torch.where(on[:, None], classes[which], logits)
    deltas = encode_boxes(regions, objects[which], weights).to(predicted.deltas.dtype)  # [P, 4]
    deltas = torch.where(on[:, None, None], deltas[:, None], predicted.deltas)  # [P, K, 4] or [P, 1, 4]
    return RegionPrediction(logits, deltas, predicted.counts)
