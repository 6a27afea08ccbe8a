"""SED, Scale-Equivalent Distillation (CVPR 2022): the whole training step.

    L = L_sup + (n_u / n_s) (lambda_s L_scale + lambda_d L_distill)                                        Eq. 1
    L_scale    consistency of the student on X and on X^, the image at 1/2^s of its size                   Eq. 2
    L_distill  consistency of the student on X_s (strong view) with the teacher on X_w (weak view)         Eq. 3
    The classification part of both is re-weighted by a histogram of gradient norms                        Eq. 5
    The teacher is the moving average of the student                                                       Eq. 4

The equations are in `sed.core.consistency`, `sed.core.matching` and `sed.core.reweighting`; docs/method.md closes what
the paper leaves open. With `SED.SCALE_TARGET teacher` ("anchored") the target of the half-size view is the teacher's
prediction on X_w instead [D]. Shape shorthand: see `sed.core.structures`; P proposals of an image.
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
    """The predictions of one model, student or teacher, on one view; None for a head that it does not have.

    proposals: N tensors [P, 4] in the frame of this view; an empty list without a region head.
    """

    model: Detector
    features: Features
    dense: DensePrediction | None
    proposals: list[Tensor]
    queries: QueryPrediction | None


class Term(NamedTuple):
    """L_scale or L_distill of Eq. 1, before it is computed: the predictions on two views, to be made consistent.

    weight: its lambda.
    regions: N tensors [P, 4], the proposals that both region heads predict, in the frame of the target's view.
    s: the student's view has 1/2^s of the size of the target's.
    symmetric: True: Eq. 2, each prediction is the other's target; False: Eq. 3, the student learns from the target.
    """

    weight: float
    target: View
    student: View
    regions: list[Tensor]
    s: int
    symmetric: bool


class SED(Method):
    """Scale-Equivalent Distillation: Eq. 1 with the terms and weights of `SEDOptions`.

    Args:
        student: the detector to train.
        schedule: burn-in, ramp, the teacher's rate, seed of the drawn s.
        options: None: the paper's.
        sum_over_processes: adds up the counts R_j of Eq. 5 over all processes, where SED.REWEIGHT.OVER_PROCESSES is
            set; the training loop hands it in.
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
        if unlabeled is None:  # burn-in
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
        """The terms whose lambda is not 0; each view that they need is predicted once."""
        o, terms = self.options, {}
        scale, distill, symmetric = o.lambda_scale > 0, o.lambda_distill > 0, o.scale_target == "student"
        s = draw_scale(step, o.max_scale, self.schedule.seed)

        # Views: X_w, X_s and X^ share one geometry; padded so that their grids pair exactly (docs/method.md 2)
        padding = self.student.size_divisibility * 2**s
        weak, strong = unlabeled.weak.pad_to_multiple(padding), unlabeled.strong.pad_to_multiple(padding)

        # Predictions; the teacher's without gradient
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
        """Eq. 2 or Eq. 3 for each head; `partners`: of `match_views`, for the query head."""
        heads, losses = self.student.heads, {}
        hard = self.options.distill_target == "hard" and not term.symmetric
        if "dense" in heads:
            pairs = pair_levels(term.target.dense, term.student.dense, term.s)  # (f, f - s): the same anchors
            logits, softmax = [target.logits for target, _ in pairs], False
            if hard:
                pairs = [(replace(target, logits=harden_sigmoid(target.logits)), own) for target, own in pairs]
            losses["dense"] = dense_consistency(pairs, self.reweight, term.symmetric)
        if "region" in heads:
            with torch.set_grad_enabled(term.symmetric):
                target = term.target.model.regions(term.target.features, term.regions)
            own = term.student.model.regions(term.student.features, [b / 2**term.s for b in term.regions])
            logits, softmax = [target.logits], True
            if hard:
                target = replace(target, logits=harden_softmax(target.logits))
            losses["region"] = region_consistency(target, own, self.reweight, term.symmetric)
        if "query" in heads:
            target = term.target.queries
            logits, softmax = [target.logits], target.softmax
            if hard:
                harden = harden_softmax if target.softmax else harden_sigmoid
                target = replace(target, logits=harden(target.logits))
            losses["query"] = query_consistency(target, term.student.queries, partners, self.reweight, term.symmetric)
        if not term.symmetric:  # the target is the teacher
            self.metrics["teacher_positives"] = count_confident(logits, softmax)
        return losses
