"""Methods by the names of SEMI.METHOD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sed.detectors.base import Detector
from sed.methods.base import Method, Schedule
from sed.methods.pseudo_label import PseudoLabel, PseudoLabelOptions
from sed.methods.sed import SED, SEDOptions
from sed.methods.supervised import Supervised


def build_method(
    name: str,
    student: Detector,
    schedule: Schedule,
    sed: SEDOptions | None = None,
    pseudo_label: PseudoLabelOptions | None = None,
) -> Method:
    """The method around `student`; `name` is "supervised", "sed" or "pseudo_label"."""
    if name == "supervised":
        return Supervised(student, schedule)
    if name == "sed":
        return SED(student, schedule, sed or SEDOptions())
    if name == "pseudo_label":
        return PseudoLabel(student, schedule, pseudo_label or PseudoLabelOptions())
    raise ValueError(f"unknown method {name!r}: expected supervised, sed or pseudo_label")


def method_from_keys(config: Mapping[str, Any], student: Detector) -> Method:
    """The method that the keys of both engines' configs describe.

    Args:
        config: the sections SEMI, SED, PSEUDO_LABEL and SOLVER (`sed.config` lists their keys) as mappings.
        student: the detector that is trained.
    """
    semi, sed, solver, pseudo = (config[section] for section in ("SEMI", "SED", "SOLVER", "PSEUDO_LABEL"))
    drops = solver["STEPS"] if solver["LR_SCHEDULER_NAME"] == "WarmupMultiStepLR" else ()
    schedule = Schedule(
        burn_in=semi["BURN_IN"],
        max_iter=solver["MAX_ITER"],
        first_drop=min(drops, default=solver["MAX_ITER"]),
        ramp_steps=semi["RAMP_STEPS"],
        ema_policy=semi["EMA"]["POLICY"],
        ema_start=semi["EMA"]["START"],
        ema_end=semi["EMA"]["END"],
    )
    options = SEDOptions(
        lambda_scale=sed["LAMBDA_SCALE"],
        lambda_distill=sed["LAMBDA_DISTILL"],
        distill_target=sed["DISTILL_TARGET"],
        threshold=sed["THRESHOLD"],
        temperature=sed["TEMPERATURE"],
        top_mass=sed["TOP_MASS"],
        scale_target=sed["SCALE_TARGET"],
        scale_source=sed["SCALE_SOURCE"],
        small_view=sed["SMALL_VIEW"],
        max_scale=sed["MAX_SCALE"],
        regions_per_view=sed["REGIONS_PER_VIEW"],
        lambda_iou=sed["LAMBDA_IOU"],
        box_weight=sed["BOX"]["WEIGHT"],
        box_kind=sed["BOX"]["KIND"],
        reweight=sed["REWEIGHT"]["KIND"],
        reweight_scale=sed["REWEIGHT"]["SCALE_TERM"],
        bins=sed["REWEIGHT"]["BINS"],
        momentum=sed["REWEIGHT"]["MOMENTUM"],
        over_processes=sed["REWEIGHT"]["OVER_PROCESSES"],
        ohem_fraction=sed["REWEIGHT"]["OHEM_FRACTION"],
        focal_gamma=sed["REWEIGHT"]["FOCAL_GAMMA"],
    )
    labels = PseudoLabelOptions(
        threshold=pseudo["THRESHOLD"],
        weight=pseudo["WEIGHT"],
        box_loss=pseudo["BOX_LOSS"],
        half_size=pseudo["HALF_SIZE"],
    )
    return build_method(semi["METHOD"], student, schedule, options, labels)
