"""SED, Scale-Equivalent Distillation (CVPR 2022): the whole training step.

    L = L_sup + (n_u / n_s) (lambda_s L_scale + lambda_d L_distill)                                        Eq. 1
    L_scale    the student agrees with itself on X and on X^, the image at 1/2^s of its size               Eq. 2
    L_distill  the student on X_s (strong view) agrees with the teacher on X_w (weak view)                 Eq. 3
    both re-weighted by a histogram of their gradient norms (Eq. 5); the teacher follows by Eq. 4

The maths is in `sed.core.consistency` and `sed.core.reweighting`; METHOD.md closes what the paper leaves open.
Shape shorthand: see `sed.core.structures`; P proposals of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sed.core.consistency import ConsistencyLoss, dense_consistency, region_consistency
from sed.core.reweighting import make_reweight
from sed.core.structures import DensePrediction, Images, LabeledBatch, UnlabeledBatch
from sed.core.views import downscale, draw_scale, pair_levels
from sed.detectors.base import Detector, Features
from sed.methods.base import Method, Schedule


@dataclass(frozen=True)
class SEDOptions:
    """The choices of METHOD 2-7; the defaults are the paper's.

    Attributes:
        lambda_scale: lambda_s; 0 leaves the term and its network passes out.
        lambda_distill: lambda_d; likewise.
        scale_target: "student" (Eq. 2 as printed) or "teacher" (the anchored form, METHOD 11).
        scale_source: which student view is P(X) of Eq. 2: "strong" or "weak" (one more pass).
        max_scale: S; s is drawn uniformly from {1..S}.
        regions_per_view: proposals of each view for the region terms.
        reweight: "histogram" (Eq. 5), "none", "ohem" or "focal".
        bins: M of Eq. 5.
        over_processes: whether Eq. 5 counts the samples of all processes together.
        ohem_fraction: share of the samples that OHEM keeps.
        focal_gamma: exponent of the focal modulation.
    """

    lambda_scale: float = 0.5
    lambda_distill: float = 1.0
    scale_target: str = "student"
    scale_source: str = "strong"
    max_scale: int = 1
    regions_per_view: int = 256
    reweight: str = "histogram"
    bins: int = 10
    over_processes: bool = False
    ohem_fraction: float = 0.1
    focal_gamma: float = 2.0


@dataclass(frozen=True)
class View:
    """One network's pass over one view. proposals: N tensors [P, 4] in the view's own frame; none if one-stage."""

    model: Detector
    features: Features
    dense: DensePrediction
    proposals: list[Tensor]


class SED(Method):
    """Eq. 1 with the terms and weights of `SEDOptions`."""

    def __init__(self, student: Detector, schedule: Schedule, options: SEDOptions) -> None:
        super().__init__(student, schedule)
        self.options = options
        self.two_stage = "region" in student.heads
        self.reweight = make_reweight(
            options.reweight,
            bins=options.bins,
            ohem_fraction=options.ohem_fraction,
            focal_gamma=options.focal_gamma,
            over_processes=options.over_processes,
        )

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, step: int) -> dict[str, Tensor]:
        """One step of Eq. 1. See `Method.forward`."""
        losses = self.supervised(labeled)
        if unlabeled is None:
            return losses
        o = self.options
        self_consistent = o.lambda_scale > 0 and o.scale_target == "student"

        # Views (METHOD 2): X_w, X_s and X^ share one geometry; padded so that their grids pair exactly
        s = draw_scale(step, o.max_scale)
        weak = unlabeled.weak.pad_to_multiple(self.student.divisor * 2**s)
        strong = unlabeled.strong.pad_to_multiple(self.student.divisor * 2**s)

        # Passes: one a view, and only those that a term needs; the teacher's without gradient
        teacher = student = full = None
        if o.lambda_distill > 0 or not self_consistent:
            with torch.no_grad():
                teacher = self._look(self.teacher.module, weak)
        if o.lambda_distill > 0 or (self_consistent and o.scale_source == "strong"):
            student = full = self._look(self.student, strong)
        if self_consistent and o.scale_source == "weak":
            full = self._look(self.student, weak)

        # Terms, each summed over its heads and weighted
        weight = len(unlabeled) / len(labeled) * self.schedule.ramp(step)
        if o.lambda_scale > 0:
            small = self._look(self.student, downscale(weak, s))
            anchor = full if self_consistent else teacher
            for part, loss in self._scale(anchor, small, s, symmetric=self_consistent).items():
                losses[f"scale/{part}"] = weight * o.lambda_scale * loss
        if o.lambda_distill > 0:
            for part, loss in self._distill(teacher, student).items():
                losses[f"distill/{part}"] = weight * o.lambda_distill * loss
        return losses

    def _look(self, model: Detector, images: Images) -> View:
        features = model.encode(images)
        dense = model.dense(features)
        proposals = model.propose(features, dense, self.options.regions_per_view) if self.two_stage else []
        return View(model, features, dense, proposals)

    def _scale(self, full: View, small: View, s: int, *, symmetric: bool) -> dict[str, Tensor]:
        """L_scale. Symmetric: Eq. 2 (`full` is the student on X); else the anchored form (the teacher on X_w)."""
        pairs = pair_levels(full.dense, small.dense, s)  # (f, f - s): the same anchors, one scale apart
        parts = _named("dense", dense_consistency(pairs, self.reweight, symmetric=symmetric))
        if self.two_stage:
            boxes = full.proposals  # frame of X
            if symmetric:  # both views' proposals, brought to the frame of X
                boxes = [torch.cat([p, q * 2**s]) for p, q in zip(boxes, small.proposals, strict=True)]
            with torch.set_grad_enabled(symmetric):
                target = full.model.regions(full.features, boxes)
            own = small.model.regions(small.features, [b / 2**s for b in boxes])
            parts |= _named("region", region_consistency(target, own, self.reweight, symmetric=symmetric))
        return parts

    def _distill(self, teacher: View, student: View) -> dict[str, Tensor]:
        """L_distill, Eq. 3: every level of the dense head, and the union of both networks' proposals."""
        levels = list(zip(teacher.dense.levels, student.dense.levels, strict=True))
        parts = _named("dense", dense_consistency(levels, self.reweight, symmetric=False))
        if self.two_stage:
            boxes = [torch.cat([p, q]) for p, q in zip(teacher.proposals, student.proposals, strict=True)]
            with torch.no_grad():
                target = teacher.model.regions(teacher.features, boxes)
            own = student.model.regions(student.features, boxes)
            parts |= _named("region", region_consistency(target, own, self.reweight, symmetric=False))
            self.metrics["teacher_positives"] = (target.logits.softmax(-1)[:, :-1].amax(-1) > 0.5).sum()
        else:
            self.metrics["teacher_positives"] = sum((level.logits > 0).sum() for level in teacher.dense.levels)
        return parts


def _named(head: str, loss: ConsistencyLoss) -> dict[str, Tensor]:
    return {f"{head}_cls": loss.cls, f"{head}_box": loss.box}
