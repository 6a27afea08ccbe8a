"""SED, Scale-Equivalent Distillation (CVPR 2022): the whole training step.

    L = L_sup + (n_u / n_s) (lambda_s L_scale + lambda_d L_distill)                                        Eq. 1
    L_scale    the student agrees with itself on X and on X^, the image at 1/2^s of its size               Eq. 2
    L_distill  the student on X_s (strong view) agrees with the teacher on X_w (weak view)                 Eq. 3
    both re-weighted by a histogram of their gradient norms (Eq. 5); the teacher follows by Eq. 4

The maths is in `sed.core.consistency`, `sed.core.matching` and `sed.core.reweighting`; METHOD.md closes what the paper
leaves open. Shape shorthand: see `sed.core.structures`; P proposals of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sed.core.box_terms import BoxTerm
from sed.core.consistency import ConsistencyLoss, dense_consistency, region_consistency
from sed.core.matching import match_views, query_consistency
from sed.core.reweighting import Reweight, make_reweight, mean
from sed.core.structures import DensePrediction, Images, LabeledBatch, QueryPrediction, RegionPrediction, UnlabeledBatch
from sed.core.targets import Sharpening
from sed.core.views import LevelPair, downscale, draw_scale, pair_levels
from sed.detectors.base import Detector, Features
from sed.methods.base import Method, Schedule, statistics_kept
from sed.methods.labels import downscale_targets, predict_pseudo_labels, region_targets


@dataclass(frozen=True)
class SEDOptions:
    """The choices of METHOD 2-7; the defaults are the paper's.

    Attributes:
        lambda_scale: lambda_s; 0 leaves the term and its network passes out.
        lambda_distill: lambda_d; likewise.
        distill_target: "soft" (Eq. 3), "hard" (its rival in Tab. 4), "hard_regions" (the region head alone) or
            "objects": the teacher's sure detections say where objects are, in both terms (see `SED._by_objects`). The
            anchored scale term has the same targets, also the hard ones.
        threshold: least score, in [0, 1], of a sure detection.
        temperature: T of `Sharpening`, on all targets that the teacher gives.
        top_mass: m of `Sharpening`, likewise.
        scale_target: "student" (Eq. 2 as printed) or "teacher" (the anchored form, METHOD 11).
        scale_source: which student view is P(X) of Eq. 2: "strong" or "weak" (one more pass).
        small_view: which view is made small: "weak" (METHOD 2) or "strong".
        max_scale: S; s is drawn uniformly from {1..S}.
        regions_per_view: proposals of each view for the region terms.
        lambda_iou: lambda of Alg. 1, the weight of GIoU when queries are matched.
        box_weight: on all box terms; the paper's is 1.
        box_kind: of `BoxTerm`: "l2", "l1" or "giou".
        reweight: "histogram" (Eq. 5), "none", "ohem" or "focal".
        reweight_scale: whether the scale term is re-weighted, too; else its plain mean.
        bins: M of Eq. 5.
        momentum: of the histogram over steps; 0: each step counts its own (the paper).
        over_processes: whether Eq. 5 counts the samples of all processes together.
        ohem_fraction: share of the samples that OHEM keeps.
        focal_gamma: exponent of the focal modulation.
    """

    lambda_scale: float = 0.5
    lambda_distill: float = 1.0
    distill_target: str = "soft"
    threshold: float = 0.7
    temperature: float = 1.0
    top_mass: float = 0.0
    scale_target: str = "student"
    scale_source: str = "strong"
    small_view: str = "weak"
    max_scale: int = 1
    regions_per_view: int = 256
    lambda_iou: float = 1.0
    box_weight: float = 1.0
    box_kind: str = "l2"
    reweight: str = "histogram"
    reweight_scale: bool = True
    bins: int = 10
    momentum: float = 0.0
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
        self.box_term = BoxTerm(options.box_kind)
        soft, hard = Sharpening(options.temperature, options.top_mass), Sharpening(top_mass=1.0)
        self.sharpen = {
            "dense": hard if options.distill_target == "hard" else soft,
            "query": hard if options.distill_target == "hard" else soft,
            "region": hard if options.distill_target in ("hard", "hard_regions") else soft,
        }
        make = partial(
            make_reweight,
            options.reweight,
            bins=options.bins,
            ohem_fraction=options.ohem_fraction,
            focal_gamma=options.focal_gamma,
            over_processes=options.over_processes,
            momentum=options.momentum,
        )
        self.plain, self.reweight = mean(), make(momentum=0.0)
        self.reweights = nn.ModuleDict()  # those with a state of their own, one a term and head
        if options.momentum and options.reweight == "histogram":
            self.reweights.update({f"{t}_{h}": make() for t in ("scale", "distill") for h in sorted(self.heads)})

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

        s = draw_scale(step, o.max_scale)
        if o.distill_target == "objects":
            return self._by_objects(unlabeled, s)

        # Views (METHOD 2): X_w, X_s and X^ share one geometry; padded so that their grids pair exactly
        weak = unlabeled.weak.pad_to_multiple(self.student.size_divisibility * 2**s)
        strong = unlabeled.strong.pad_to_multiple(self.student.size_divisibility * 2**s)

        # Passes: one a view, and only those that a term needs; the teacher's without gradient
        teacher = student = full = None
        if o.lambda_distill > 0 or anchored:
            with torch.no_grad():
                teacher = self._predict(self.teacher.module, weak)
        if o.lambda_distill > 0 or (self_consistent and o.scale_source == "strong"):
            student = full = self._predict(self.student, strong)
        if self_consistent and o.scale_source == "weak":
            full = self._predict(self.student, weak)
        terms = []
        if o.lambda_scale > 0:
            small = self._predict(self.student, self._small(unlabeled, s))
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

    def _by_objects(self, unlabeled: UnlabeledBatch, s: int) -> dict[str, Tensor]:
        """Both terms with the objects that the teacher is sure of as their targets [D].

        The detector's own losses with these objects as labels, on X_s and, halved, on X^. A region head is told
        `object_targets` instead, on both networks' proposals and the objects themselves.
        """
        o, teacher = self.options, self.teacher.module
        found = predict_pseudo_labels(teacher, unlabeled.weak, o.threshold)
        strong = unlabeled.strong.pad_to_multiple(self.student.size_divisibility)
        terms = []
        if o.lambda_scale > 0:
            terms.append(("scale", o.lambda_scale, self._small(unlabeled, s), s))
        if o.lambda_distill > 0:
            terms.append(("distill", o.lambda_distill, strong, 0))
        losses = {}
        for name, weight, images, scale in terms:
            labels = downscale_targets(found.objects, scale)
            if "region" not in self.heads:
                parts = self.student.supervised_losses(LabeledBatch(images, labels))
            else:
                view = self.student.encode(images)
                parts, proposals = self.student.proposal_losses(view, labels)
                rows, most = zip(found.proposals, proposals, found.objects, strict=True), o.regions_per_view
                boxes = [torch.cat([p[:most], q[:most] * 2**scale, t.boxes]) for p, q, t in rows]  # frame of X
                told = region_targets(teacher, found, boxes, self.sharpen["region"].softmax)
                said = self.student.regions(view, [b / 2**scale for b in boxes])
                reweight, coder = self._reweight(name, "region"), self.student.box_coder_weights["region"]
                loss = region_consistency(told, said, reweight, False, self.box_term, coder)
                parts |= {"region_cls": loss.cls, "region_box": loss.box}
            for part, loss in parts.items():
                factor = o.box_weight if part.endswith("_box") else 1.0
                if factor:
                    losses[f"{name}/{part}"] = weight * factor * loss
        self.metrics["teacher_positives"] = torch.tensor(sum(len(t.classes) for t in found.objects))
        return losses

    def _small(self, unlabeled: UnlabeledBatch, s: int) -> Images:
        """X^."""
        images = unlabeled.weak if self.options.small_view == "weak" else unlabeled.strong
        return downscale(images.pad_to_multiple(self.student.size_divisibility * 2**s), s)

    def _predict(self, model: Detector, images: Images) -> View:
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
            parts |= self._dense("scale", pairs, symmetric)
        if "region" in self.heads:
            boxes = full.proposals  # frame of X
            if symmetric:  # both views' proposals, brought to the frame of X
                boxes = [torch.cat([p, q * 2**s]) for p, q in zip(boxes, small.proposals, strict=True)]
            with torch.set_grad_enabled(symmetric):
                target = full.model.regions(full.features, boxes)
            own = small.model.regions(small.features, [b / 2**s for b in boxes])
            parts |= self._region("scale", target, own, symmetric)
        if "query" in self.heads:
            parts |= self._query("scale", full.queries, small.queries, partners, symmetric)
        return parts

    def _distill(self, teacher: View, student: View, partners: Tensor | None) -> dict[str, Tensor]:
        """L_distill, Eq. 3: every level of the dense head, the union of both networks' proposals, all queries."""
        parts, positives = {}, []
        if "dense" in self.heads:
            parts |= self._dense("distill", list(zip(teacher.dense.levels, student.dense.levels, strict=True)), False)
            positives = [(level.logits > 0).sum() for level in teacher.dense.levels]
        if "region" in self.heads:
            boxes = [torch.cat([p, q]) for p, q in zip(teacher.proposals, student.proposals, strict=True)]
            with torch.no_grad():
                target = teacher.model.regions(teacher.features, boxes)
            own = student.model.regions(student.features, boxes)
            parts |= self._region("distill", target, own, False)
            positives = [(target.logits.softmax(-1)[:, :-1].amax(-1) > 0.5).sum()]
        if "query" in self.heads:
            found = teacher.queries
            parts |= self._query("distill", found, student.queries, partners, False)
            sure = found.logits.softmax(-1)[..., :-1] if found.softmax else found.logits.sigmoid()
            positives = [(sure > 0.5).sum()]
        self.metrics["teacher_positives"] = sum(positives)
        return parts

    # One head's part of a term: the target sharpened where a teacher gives it, then D, re-weighted, and the box term
    def _dense(self, term: str, pairs: Sequence[LevelPair], symmetric: bool) -> dict[str, Tensor]:
        if not symmetric:
            pairs = [(replace(t, logits=self.sharpen["dense"].sigmoid(t.logits)), own) for t, own in pairs]
        reweight, coder = self._reweight(term, "dense"), self.student.box_coder_weights["dense"]
        return self._named("dense", dense_consistency(pairs, reweight, symmetric, self.box_term, coder))

    def _region(self, term: str, target: RegionPrediction, own: RegionPrediction, symmetric: bool) -> dict[str, Tensor]:
        if not symmetric:
            target = replace(target, logits=self.sharpen["region"].softmax(target.logits))
        reweight, coder = self._reweight(term, "region"), self.student.box_coder_weights["region"]
        return self._named("region", region_consistency(target, own, reweight, symmetric, self.box_term, coder))

    def _query(
        self, term: str, target: QueryPrediction, own: QueryPrediction, partners: Tensor | None, symmetric: bool
    ) -> dict[str, Tensor]:
        if not symmetric:
            sharpen = self.sharpen["query"]
            logits = (sharpen.softmax if target.softmax else sharpen.sigmoid)(target.logits)
            target = replace(target, logits=logits)
        loss = query_consistency(target, own, partners, self._reweight(term, "query"), symmetric, self.box_term)
        return self._named("query", loss)

    def _reweight(self, term: str, head: str) -> Reweight:
        if term == "scale" and not self.options.reweight_scale:
            return self.plain
        return self.reweights[f"{term}_{head}"] if self.reweights else self.reweight

    def _named(self, head: str, loss: ConsistencyLoss) -> dict[str, Tensor]:
        parts = {f"{head}_cls": loss.cls}
        return parts | {f"{head}_box": self.options.box_weight * loss.box} if self.options.box_weight else parts
