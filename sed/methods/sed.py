"""SED, Scale-Equivalent Distillation (CVPR 2022): the whole training step.

    L = L_sup + (n_u / n_s) (lambda_s L_scale + lambda_d L_distill)                                        Eq. 1
    L_scale    the student agrees with itself on X and on X^, the image at 1/2^s of its size               Eq. 2
    L_distill  the student on X_s (strong view) agrees with the teacher on X_w (weak view)                 Eq. 3
    both re-weighted by a histogram of their gradient norms (Eq. 5); the teacher follows by Eq. 4

The maths is in `sed.core.consistency`, `sed.core.matching` and `sed.core.reweighting`; METHOD.md closes what the paper
leaves open. Shape shorthand: see `sed.core.structures`; P proposals of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sed.core.consistency import ConsistencyLoss, dense_consistency, region_consistency
from sed.core.matching import match_views, query_consistency
from sed.core.reweighting import make_reweight
from sed.core.structures import DensePrediction, Images, LabeledBatch, QueryPrediction, UnlabeledBatch
from sed.core.targets import hard_sigmoid, hard_softmax
from sed.core.views import downscale, draw_scale, pair_levels
from sed.detectors.base import Detector, Features
from sed.methods.base import Method, Schedule, statistics_kept


@dataclass(frozen=True)
class SEDOptions:
    """The choices of METHOD 2-7; the defaults are the paper's.

    Attributes:
        lambda_scale: lambda_s; 0 leaves the term and its network passes out.
        lambda_distill: lambda_d; likewise.
        distill_target: "soft" (Eq. 3) or "hard" (its rival in Tab. 4).
        scale_target: "student" (Eq. 2 as printed) or "teacher" (the anchored form, METHOD 11).
        scale_source: which student view is P(X) of Eq. 2: "strong" or "weak" (one more pass).
        max_scale: S; s is drawn uniformly from {1..S}.
        regions_per_view: proposals of each view for the region terms.
        lambda_iou: lambda of Alg. 1, the weight of GIoU when queries are matched.
        reweight: "histogram" (Eq. 5), "none", "ohem" or "focal".
        bins: M of Eq. 5.
        over_processes: whether Eq. 5 counts the samples of all processes together.
        ohem_fraction: share of the samples that OHEM keeps.
        focal_gamma: exponent of the focal modulation.
    """

    lambda_scale: float = 0.5
    lambda_distill: float = 1.0
    distill_target: str = "soft"
    scale_target: str = "student"
    scale_source: str = "strong"
    max_scale: int = 1
    regions_per_view: int = 256
    lambda_iou: float = 1.0
    reweight: str = "histogram"
    bins: int = 10
    over_processes: bool = False
    ohem_fraction: float = 0.1
    focal_gamma: float = 2.0


@dataclass(frozen=True)
class View:
    """One network's pass over one view: what each head that it has says.

    proposals: N tensors [P, 4] in the view's own frame, two-stage detectors only.
    """

    model: Detector
    features: Features
    dense: DensePrediction | None
    proposals: list[Tensor]
    queries: QueryPrediction | None


class Term(NamedTuple):
    """A term of Eq. 1 before its loss: lambda, the target's view and the student's."""

    name: str
    weight: float
    target: View
    student: View


class SED(Method):
    """Eq. 1 with the terms and weights of `SEDOptions`."""

    def __init__(self, student: Detector, schedule: Schedule, options: SEDOptions) -> None:
        super().__init__(student, schedule)
        self.options = options
        self.heads = student.heads
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
        with statistics_kept(self.student):
            parts = self._unsupervised(unlabeled, step)
        weight = len(unlabeled) / len(labeled) * self.schedule.ramp(step)
        return losses | {name: weight * loss for name, loss in parts.items()}

    def _unsupervised(self, unlabeled: UnlabeledBatch, step: int) -> dict[str, Tensor]:
        """lambda_s L_scale + lambda_d L_distill, part by part."""
        o = self.options
        self_consistent = o.lambda_scale > 0 and o.scale_target == "student"
        anchored = o.lambda_scale > 0 and o.scale_target == "teacher"

        # Views (METHOD 2): X_w, X_s and X^ share one geometry; padded so that their grids pair exactly
        s = draw_scale(step, o.max_scale)
        weak = unlabeled.weak.pad_to_multiple(self.student.divisor * 2**s)
        strong = unlabeled.strong.pad_to_multiple(self.student.divisor * 2**s)

        # Passes: one a view, and only those that a term needs; the teacher's without gradient
        teacher = student = full = None
        if o.lambda_distill > 0 or anchored:
            with torch.no_grad():
                teacher = self._look(self.teacher.module, weak)
        if o.lambda_distill > 0 or (self_consistent and o.scale_source == "strong"):
            student = full = self._look(self.student, strong)
        if self_consistent and o.scale_source == "weak":
            full = self._look(self.student, weak)
        terms = []
        if o.lambda_scale > 0:
            small = self._look(self.student, downscale(weak, s))
            terms.append(Term("scale", o.lambda_scale, full if self_consistent else teacher, small))
        if o.lambda_distill > 0:
            terms.append(Term("distill", o.lambda_distill, teacher, student))

        # Terms, each summed over its heads and weighted
        losses = {}
        partners: list[Tensor | None] = [None] * len(terms)
        if "query" in self.heads:  # Alg. 1 for both terms at once
            partners = list(match_views([(t.target.queries, t.student.queries) for t in terms], o.lambda_iou))
        for term, pairing in zip(terms, partners, strict=True):
            if term.name == "scale":
                parts = self._scale(term.target, term.student, s, pairing, symmetric=self_consistent)
            else:
                parts = self._distill(term.target, term.student, pairing)
            losses |= {f"{term.name}/{part}": term.weight * loss for part, loss in parts.items()}
        return losses

    def _look(self, model: Detector, images: Images) -> View:
        features = model.encode(images)
        dense = model.dense(features) if "dense" in self.heads else None
        proposals = model.propose(features, dense, self.options.regions_per_view) if "region" in self.heads else []
        queries = model.queries(features) if "query" in self.heads else None
        return View(model, features, dense, proposals, queries)

    def _scale(self, full: View, small: View, s: int, partners: Tensor | None, *, symmetric: bool) -> dict[str, Tensor]:
        """L_scale. Symmetric: Eq. 2 (`full` is the student on X); else the anchored form (the teacher on X_w)."""
        parts = {}
        if "dense" in self.heads:
            pairs = pair_levels(full.dense, small.dense, s)  # (f, f - s): the same anchors, one scale apart
            parts |= _named("dense", dense_consistency(pairs, self.reweight, symmetric=symmetric))
        if "region" in self.heads:
            boxes = full.proposals  # frame of X
            if symmetric:  # both views' proposals, brought to the frame of X
                boxes = [torch.cat([p, q * 2**s]) for p, q in zip(boxes, small.proposals, strict=True)]
            with torch.set_grad_enabled(symmetric):
                target = full.model.regions(full.features, boxes)
            own = small.model.regions(small.features, [b / 2**s for b in boxes])
            parts |= _named("region", region_consistency(target, own, self.reweight, symmetric=symmetric))
        if "query" in self.heads:
            loss = query_consistency(full.queries, small.queries, partners, self.reweight, symmetric=symmetric)
            parts |= _named("query", loss)
        return parts

    def _distill(self, teacher: View, student: View, partners: Tensor | None) -> dict[str, Tensor]:
        """L_distill, Eq. 3: every level of the dense head, the union of both networks' proposals, all queries."""
        parts, positives = {}, []
        hard = self.options.distill_target == "hard"
        if "dense" in self.heads:
            told = teacher.dense.levels
            if hard:
                told = tuple(replace(level, logits=hard_sigmoid(level.logits)) for level in told)
            levels = list(zip(told, student.dense.levels, strict=True))
            parts |= _named("dense", dense_consistency(levels, self.reweight, symmetric=False))
            positives = [(level.logits > 0).sum() for level in teacher.dense.levels]
        if "region" in self.heads:
            boxes = [torch.cat([p, q]) for p, q in zip(teacher.proposals, student.proposals, strict=True)]
            with torch.no_grad():
                target = teacher.model.regions(teacher.features, boxes)
            own = student.model.regions(student.features, boxes)
            told = replace(target, logits=hard_softmax(target.logits)) if hard else target
            parts |= _named("region", region_consistency(told, own, self.reweight, symmetric=False))
            positives = [(target.logits.softmax(-1)[:, :-1].amax(-1) > 0.5).sum()]
        if "query" in self.heads:
            found = told = teacher.queries
            if hard:
                told = replace(found, logits=(hard_softmax if found.softmax else hard_sigmoid)(found.logits))
            loss = query_consistency(told, student.queries, partners, self.reweight, symmetric=False)
            parts |= _named("query", loss)
            sure = found.logits.softmax(-1)[..., :-1] if found.softmax else found.logits.sigmoid()
            positives = [(sure > 0.5).sum()]
        self.metrics["teacher_positives"] = sum(positives)
        return parts


def _named(head: str, loss: ConsistencyLoss) -> dict[str, Tensor]:
    return {f"{head}_cls": loss.cls, f"{head}_box": loss.box}
