"""The options of the methods: section SEMI, of all methods, and SED, SED_PLUS and PSEUDO_LABEL, of one each.

The defaults of `SEDOptions` are the paper's but for REGIONS_PER_VIEW (256; the paper: typically 1000). [O] marks what
the paper leaves open, [D] what deviates from it (docs/method.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from sed.options.option import option, section

METHODS = ("supervised", "pseudo_label", "sed", "sed_plus")


@dataclass(frozen=True)
class EMA:
    """The rate a of Eq. 4, theta_t = a theta_t + (1 - a) theta_s."""

    policy: str = option(
        "step",
        "step: START, then END from the first drop of the learning rate | cosine: from START to END | constant: START",
        choices=("step", "cosine", "constant"),
    )
    start: float = option(0.99, "the first rate; the paper's cosine has 0.996, its constant 0.95", low=0, high=1)
    end: float = option(0.9, "the last rate", low=0, high=1)


@dataclass(frozen=True)
class SemiOptions:
    """Semi-supervised training, whatever the method."""

    method: str = option("sed", "how unlabelled images are used; one file of sed/methods per method", choices=METHODS)
    labeled_percent: float = option(
        0.0, "labelled share of DATASETS.TRAIN where DATASETS.UNLABELED is empty; 0: see LABELED_COUNT", low=0, high=100
    )
    labeled_count: int = option(0, "the same as a number of images", low=0)
    fold: int = option(0, "which split; a fold seeds the split and nothing else", low=0)
    ims_per_batch_labeled: int = option(8, "n_s, labelled images per step, over all processes", low=1)
    ims_per_batch_unlabeled: int = option(8, "n_u, unlabelled images per step, over all processes", low=1)
    burn_in: int = option(10000, "supervised steps first; at their end the teacher is a copy of the student", low=0)
    ramp_steps: int = option(
        0, "steps over which the unsupervised weights rise after burn-in; 0: at once (the paper) [O]", low=0
    )
    strong_labeled: bool = option(
        True, "every second labelled image gets the strong view, in the supervised baseline too; the paper: none [D]"
    )
    ema: EMA = section(EMA)
    collapse_steps: int = option(
        200, "warn after so many steps in which the teacher is confident of less than 0.5 objects; 0: never", low=0
    )


@dataclass(frozen=True)
class ReweightOptions:
    """Re-weighting of the classification terms (Eq. 5)."""

    kind: str = option(
        "histogram",
        "histogram: Eq. 5 | none: mean | ohem: mean of the 10 % with the largest loss | focal: exponent 2 (Tab. 10)",
        choices=("histogram", "none", "ohem", "focal"),
    )
    bins: int = option(10, "M of Eq. 5 [O]", low=1)
    over_processes: bool = option(False, "whether Eq. 5 counts the samples of all processes together [O]")


@dataclass(frozen=True)
class SEDOptions:
    """SED, the paper's method."""

    lambda_scale: float = option(0.5, "lambda_s of Eq. 1; 0 leaves the scale term and its network passes out", low=0)
    lambda_distill: float = option(1.0, "lambda_d of Eq. 1; 0 leaves the distillation term out", low=0)
    distill_target: str = option(
        "soft", "the teacher's targets. soft: Eq. 3 | hard: their most likely class (Tab. 4)", choices=("soft", "hard")
    )
    scale_target: str = option(
        "student",
        "the scale term's target. student: Eq. 2 | teacher: its prediction on the full size [D]",
        choices=("student", "teacher"),
    )
    scale_source: str = option(
        "strong",
        "the student's view that is P(X) of Eq. 2; weak costs one more pass [O]",
        choices=("strong", "weak"),
    )
    small_view: str = option("weak", "the view that is made small [O]", choices=("weak", "strong"))
    max_scale: int = option(
        1, "S: the small view has 1/2^s of the size, s drawn from {1..S}; 0: the same size (rate 1 of Tab. 8)", low=0
    )
    regions_per_view: int = option(256, "proposals of each view for the region terms [O]", low=1)
    lambda_iou: float = option(1.0, "lambda of Alg. 1, the weight of GIoU when queries are matched [O]", low=0)
    reweight: ReweightOptions = section(ReweightOptions)


@dataclass(frozen=True)
class PseudoLabelOptions:
    """Hard pseudo-labels from a mean teacher; the defaults are Unbiased Teacher's."""

    threshold: float = option(0.7, "least score of a detection that becomes a pseudo-label", low=0)
    weight: float = option(4.0, "weight of the pseudo-labels' losses, beside n_u / n_s", low=0)
    box_loss: bool = option(False, "whether pseudo-labels also train the boxes")
    half_size: bool = option(False, "whether the half-size view is trained on them too, at the same weight")


@dataclass(frozen=True)
class SEDPlusOptions:
    """Pseudo-labels on both scales, with the teacher's class distribution for the regions; ours, not the paper's."""

    threshold: float = option(0.7, "least score of a detection that becomes a pseudo-label", low=0)
    weight: float = option(1.0, "weight of the losses on the strong view, beside n_u / n_s; 0 leaves it out", low=0)
    half_size_weight: float = option(1.0, "weight of the losses on the half-size view; 0 leaves it out", low=0)
    least_scale: float = option(
        1.0, "the strong view has a size drawn from this share of the weak view's to all of it", low=0.1, high=1
    )
    region_target: str = option(
        "distribution",
        "class target of a region: the teacher's class distribution | hard: its most likely class",
        choices=("distribution", "hard"),
    )
    regions_per_view: int = option(256, "proposals of each network that are trained", low=1)
