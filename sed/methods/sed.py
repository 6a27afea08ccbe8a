"""SED, Scale-Equivalent Distillation (CVPR 2022): the whole training step.

    L = L_sup + (n_u / n_s) (lambda_s L_scale + lambda_d L_distill)                                        Eq. 1
    L_scale    the student agrees with itself on X and on X^, the image at 1/2^s of its size               Eq. 2
    L_distill  the student on X_s (strong view) agrees with the teacher on X_w (weak view)                 Eq. 3
    both re-weighted by a histogram of their gradient norms (Eq. 5); the teacher follows by Eq. 4

The equations are in `sed.core.consistency`, `sed.core.matching` and `sed.core.reweighting`; docs/method.md closes what
the paper leaves open. With SCALE_TARGET teacher the half-size view learns from the teacher's full-size prediction
instead ("anchored", a deviation). Shape shorthand: see `sed.core.structures`; P proposals of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sed.core.consistency import ConsistencyLoss, dense_consistency, region_consistency
from sed.core.matching import match_views, query_consistency
from sed.core.reweighting import SumOverProcesses, make_reweight
from sed.core.structures import DensePrediction, Images, LabeledBatch, QueryPrediction, UnlabeledBatch
from sed.core.targets import harden_sigmoid, harden_softmax
from sed.core.views import downscale, draw_scale, pair_levels
from sed.detectors.base import Detector, Features
from sed.methods.base import Method, Schedule, count_confident, statistics_kept
from sed.options.methods import SEDOptions


@dataclass(frozen=True)
class View:
    """One network's pass over one view: what each head that it has predicts.

    proposals: N tensors [P, 4] in the view's own frame, two-stage detectors only.
    """

    model: Detector
    features: Features
    dense: DensePrediction | None
    proposals: list[Tensor]
    queries: QueryPrediction | None


class Term(NamedTuple):
    """A term of Eq. 1 before its loss: two views that must agree.

    regions: N tensors [P, 4], the boxes that the region heads compare, in the target's frame.
    s: the student's view has 1/2^s of the target's size.
    symmetric: Eq. 2, in both directions; else Eq. 3, from the target to the student.
    """

    weight: float
    target: View
    student: View
    regions: list[Tensor]
    s: int
    symmetric: bool


class SED(Method):
    """Eq. 1 with the terms and weights of `SEDOptions`.

    Args:
        student: the detector to train.
        schedule: burn-in, teacher's rate, seed of the drawn s.
        options: the paper's by default.
        sum_over_processes: adds up Eq. 5's counts where REWEIGHT.OVER_PROCESSES asks for it; the driver's.
    """

    def __init__(
        self,
        student: Detector,
        schedule: Schedule,
        options: SEDOptions | None = None,
        sum_over_processes: SumOverProcesses | None = None,
    ) -> None:
        super().__init__(student, schedule)
        self.options = o = options or SEDOptions()
        if o.reweight.over_processes and sum_over_processes is None:
            raise ValueError("SED: REWEIGHT.OVER_PROCESSES needs sum_over_processes (sed.runtime.launch has one)")
        over = sum_over_processes if o.reweight.over_processes else None
        self.reweight = make_reweight(o.reweight.kind, o.reweight.bins, over)

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, step: int) -> dict[str, Tensor]:
        """One step of Eq. 1. See `Method.forward`."""
        losses = self.supervised(labeled)
        if unlabeled is None:
            return losses
        with statistics_kept(self.student):
            terms = self._terms(unlabeled, step)
            partners: list[Tensor | None] = [None] * len(terms)
            if "query" in self.student.heads:  # Alg. 1, for both terms at once
                views = [(term.target.queries, term.student.queries) for term in terms.values()]
                partners = list(match_views(views, self.options.lambda_iou))
            parts = {n: self._losses(t, p) for (n, t), p in zip(terms.items(), partners, strict=True)}
        ratio = len(unlabeled) / len(labeled) * self.schedule.ramp(step)  # n_u / n_s
        for name, term in terms.items():
            for head, loss in parts[name].items():
                losses[f"{name}/{head}_cls"] = ratio * (term.weight * loss.cls)
                losses[f"{name}/{head}_box"] = ratio * (term.weight * loss.box)
        return losses

    def _terms(self, unlabeled: UnlabeledBatch, step: int) -> dict[str, Term]:
        """The terms whose lambda is not 0, from one pass a view and no pass that no term needs."""
        o, terms = self.options, {}
        scale, distill, symmetric = o.lambda_scale > 0, o.lambda_distill > 0, o.scale_target == "student"
        s = draw_scale(step, o.max_scale, self.schedule.seed)

        # Views: X_w, X_s and X^ share one geometry; padded so that their grids pair exactly (docs/method.md, section 2)
        padding = self.student.size_divisibility * 2**s
        weak, strong = unlabeled.weak.pad_to_multiple(padding), unlabeled.strong.pad_to_multiple(padding)

        # Passes; the teacher's without gradient
        teacher = student = full = None
        if distill or (scale and not symmetric):
            with torch.no_grad():
                teacher = self._predict(self.teacher.module, weak)
        if distill or (scale and symmetric and o.scale_source == "strong"):
            student = full = self._predict(self.student, strong)
        if scale and symmetric and o.scale_source == "weak":
            full = self._predict(self.student, weak)

        if scale:
            small = self._predict(self.student, downscale(weak if o.small_view == "weak" else strong, s))
            target = full if symmetric else teacher
            regions = target.proposals
            if symmetric:  # both views' proposals, in the frame of X
                regions = [torch.cat([p, q * 2**s]) for p, q in zip(regions, small.proposals, strict=True)]
            terms["scale"] = Term(o.lambda_scale, target, small, regions, s, symmetric)
        if distill:
            regions = [torch.cat([p, q]) for p, q in zip(teacher.proposals, student.proposals, strict=True)]
            terms["distill"] = Term(o.lambda_distill, teacher, student, regions, 0, False)
        return terms

    def _predict(self, model: Detector, images: Images) -> View:
        features = model.encode(images)
        dense = model.dense(features) if "dense" in model.heads else None
        proposals = model.propose(features, dense, self.options.regions_per_view) if "region" in model.heads else []
        queries = model.queries(features) if "query" in model.heads else None
        return View(model, features, dense, proposals, queries)

    def _losses(self, term: Term, partners: Tensor | None) -> dict[str, ConsistencyLoss]:
        """Eq. 2 or Eq. 3 of each head. `partners` of `match_views`, for the query head."""
        heads, losses = self.student.heads, {}
        hard = self.options.distill_target == "hard" and not term.symmetric
        if "dense" in heads:
            pairs = pair_levels(term.target.dense, term.student.dense, term.s)  # (f, f - s): the same anchors
            answer, softmax = [target.logits for target, _ in pairs], False
            if hard:
                pairs = [(replace(target, logits=harden_sigmoid(target.logits)), own) for target, own in pairs]
            losses["dense"] = dense_consistency(pairs, self.reweight, term.symmetric)
        if "region" in heads:
            with torch.set_grad_enabled(term.symmetric):
                target = term.target.model.regions(term.target.features, term.regions)
            own = term.student.model.regions(term.student.features, [b / 2**term.s for b in term.regions])
            answer, softmax = [target.logits], True
            if hard:
                target = replace(target, logits=harden_softmax(target.logits))
            losses["region"] = region_consistency(target, own, self.reweight, term.symmetric)
        if "query" in heads:
            target = term.target.queries
            answer, softmax = [target.logits], target.softmax
            if hard:
                harden = harden_softmax if target.softmax else harden_sigmoid
                target = replace(target, logits=harden(target.logits))
            losses["query"] = query_consistency(target, term.student.queries, partners, self.reweight, term.symmetric)
        if not term.symmetric:  # the target is the teacher
            self.metrics["teacher_positives"] = count_confident(answer, softmax)
        return losses
