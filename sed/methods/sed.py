"""SED, Scale-Equivalent Distillation (CVPR 2022): the whole training step.

    L = L_sup + (n_u / n_s) (lambda_s L_scale + lambda_d L_distill)                                        Eq. 1
    L_scale    consistency of the student on X with itself on X^, X at 1/2^s of its size                   Eq. 2
    L_distill  consistency of the student on X_s (strong view) with the teacher on X_w (weak view)         Eq. 3
    The classification part of both is re-weighted by a histogram of gradient norms                        Eq. 5
    The teacher is the moving average of the student                                                       Eq. 4

X of Eq. 2 is X_s by default, and X^ is X_w made small [O]: `SED.SCALE_SOURCE` and `SMALL_VIEW` choose otherwise. With
`SED.SCALE_TARGET teacher` the target of X^ is the teacher's prediction on X_w instead [D]. The formulas are in
`sed.core`: consistency, matching, reweighting. [O]: the paper leaves it open, [D]: a deviation (docs/method.md).

Shape shorthand: see `sed.core.structures`; P proposals of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sed.core.consistency import ConsistencyLoss, dense_consistency, region_consistency
from sed.core.matching import match_views, query_consistency
from sed.core.reweighting import SumOverProcesses, make_reweight
from sed.core.structures import DensePrediction, Images, LabeledBatch, QueryPrediction, UnlabeledBatch
from sed.core.targets import harden
from sed.core.views import downscale, draw_scale, pair_levels
from sed.detectors.base import Detector, Features
from sed.methods.base import Method, Schedule, count_confident, statistics_kept
from sed.options.methods import SEDOptions


@dataclass(frozen=True)
class View:
    """The predictions of student or teacher on one view; None for a head that is not there.

    Heads: dense (RPN, one-stage), region (second stage), query (DETR family). proposals: N tensors [P, 4] in the frame
    of this view; an empty list without a region head.
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
        ratio = len(unlabeled) / len(labeled) * self.schedule.ramp(step)  # n_u / n_s, times the ramp, times the ramp
        for name, term in terms.items():
            for head, loss in parts[name].items():
                losses[f"{name}/{head}_cls"] = ratio * (term.weight * loss.cls)
                losses[f"{name}/{head}_box"] = ratio * (term.weight * loss.box)
        return losses

    def _terms(self, unlabeled: UnlabeledBatch, step: int) -> dict[str, Term]:
        """The terms whose lambda is not 0, from one network pass per view and no pass that no term needs.

        | term                        | target            | student           | regions of both region heads         |
        | scale (Eq. 2)               | student on X      | student on X^     | the proposals of both views          |
        | scale, SCALE_TARGET teacher | teacher on X_w    | student on X^     | the teacher's proposals              |
        | distillation (Eq. 3)        | teacher on X_w    | student on X_s    | the proposals of both networks       |
        """
        o, terms = self.options, {}
        scale, distill, symmetric = o.lambda_scale > 0, o.lambda_distill > 0, o.scale_target == "student"
        s = draw_scale(step, o.max_scale, self.schedule.seed)

        # Views of one geometry, padded so that the grids of X and X^ pair exactly (docs/method.md 2)
        padding = self.student.size_divisibility * 2**s
        weak, strong = unlabeled.weak.pad_to_multiple(padding), unlabeled.strong.pad_to_multiple(padding)

        # Passes; the teacher's without gradient
        if distill or (scale and not symmetric):
            with torch.no_grad():
                teacher_on_weak = self._predict(self.teacher.module, weak)
        if distill or (scale and symmetric and o.scale_source == "strong"):
            student_on_strong = self._predict(self.student, strong)
        if scale and symmetric:
            student_on_x = student_on_strong if o.scale_source == "strong" else self._predict(self.student, weak)
        if scale:
            small = downscale(weak if o.small_view == "weak" else strong, s)  # X^
            student_on_small = self._predict(self.student, small)

        if scale and symmetric:
            rows = zip(student_on_x.proposals, student_on_small.proposals, strict=True)
            regions = [torch.cat([p, q * 2**s]) for p, q in rows]  # frame of X
            terms["scale"] = Term(o.lambda_scale, student_on_x, student_on_small, regions, s, symmetric=True)
        elif scale:
            regions = teacher_on_weak.proposals
            terms["scale"] = Term(o.lambda_scale, teacher_on_weak, student_on_small, regions, s, symmetric=False)
        if distill:
            rows = zip(teacher_on_weak.proposals, student_on_strong.proposals, strict=True)
            regions = [torch.cat([p, q]) for p, q in rows]
            terms["distill"] = Term(o.lambda_distill, teacher_on_weak, student_on_strong, regions, 0, symmetric=False)
        return terms

    def _predict(self, model: Detector, images: Images) -> View:
        """One network pass over one view."""
        features = model.encode(images)
        dense = model.dense(features) if "dense" in model.heads else None
        proposals = model.propose(features, dense, self.options.regions_per_view) if "region" in model.heads else []
        queries = model.queries(features) if "query" in model.heads else None
        return View(model, features, dense, proposals, queries)

    def _losses(self, term: Term, partners: Tensor | None) -> dict[str, ConsistencyLoss]:
        """Eq. 2 or Eq. 3 of each head; `partners` are those of `match_views`, for the query head."""
        target, student, losses = term.target, term.student, {}
        hard = self.options.distill_target == "hard" and not term.symmetric  # Tab. 4
        if target.dense is not None:
            pairs = pair_levels(target.dense, student.dense, term.s)  # levels (f, f - s): the same anchors
            last_head = [level for level, _ in pairs]
            pairs = [(harden(level), own) for level, own in pairs] if hard else pairs
            losses["dense"] = dense_consistency(pairs, self.reweight, term.symmetric)
        if "region" in target.model.heads:
            with torch.set_grad_enabled(term.symmetric):
                regions = target.model.regions(target.features, term.regions)
            own, last_head = student.model.regions(student.features, [b / 2**term.s for b in term.regions]), [regions]
            regions = harden(regions) if hard else regions
            losses["region"] = region_consistency(regions, own, self.reweight, term.symmetric)
        if target.queries is not None:
            queries, last_head = harden(target.queries) if hard else target.queries, [target.queries]
            losses["query"] = query_consistency(queries, student.queries, partners, self.reweight, term.symmetric)
        if not term.symmetric:  # the target is the teacher
            self.metrics["teacher_positives"] = count_confident(last_head)
        return losses
