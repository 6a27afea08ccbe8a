"""Builds a method by its name in SEMI.METHOD, or the method that a config describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sed.core.reweighting import SumOverProcesses
from sed.detectors.base import Detector
from sed.methods.base import Method, Schedule
from sed.methods.pseudo_label import PseudoLabel
from sed.methods.sed import SED
from sed.methods.sed_plus import SEDPlus
from sed.methods.supervised import Supervised
from sed.options import from_section
from sed.options.methods import METHODS, PseudoLabelOptions, SEDOptions, SEDPlusOptions, SemiOptions

# name -> class, class of its options, section of the config
_KINDS: dict[str, tuple[type, type, str]] = {
    "pseudo_label": (PseudoLabel, PseudoLabelOptions, "PSEUDO_LABEL"),
    "sed": (SED, SEDOptions, "SED"),
    "sed_plus": (SEDPlus, SEDPlusOptions, "SED_PLUS"),
}


def build_method(
    name: str,
    student: Detector,
    schedule: Schedule,
    options: SEDOptions | SEDPlusOptions | PseudoLabelOptions | None = None,
    sum_over_processes: SumOverProcesses | None = None,
) -> Method:
    """Build the method called `name` around the detector that it trains.

    Args:
        name: a value of SEMI.METHOD.
        student: the detector to train.
        schedule: burn-in, ramp and the teacher's rate.
        options: of that method; None: its defaults.
        sum_over_processes: see `SED`; other methods do not use it.

    Raises:
        ValueError: for an unknown name, or options of another method.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")
    if name == "supervised":
        return Supervised(student, schedule)
    kind, kind_of_options, _ = _KINDS[name]
    if options is not None and not isinstance(options, kind_of_options):
        raise ValueError(f"method {name!r}: expected {kind_of_options.__name__}, got {type(options).__name__}")
    more = {"sum_over_processes": sum_over_processes} if kind is SED else {}
    return kind(student, schedule, options, **more)


def method_from_config(
    config: Mapping[str, Any], student: Detector, sum_over_processes: SumOverProcesses | None = None
) -> Method:
    """The method that a config of either engine describes.

    Args:
        config: the key SEED, and the sections SEMI, SOLVER and that of the method (docs/options.md) as mappings.
        student: the detector to train.
        sum_over_processes: see `SED`.
    """
    semi, solver = from_section(SemiOptions, config["SEMI"]), config["SOLVER"]
    drops = solver["STEPS"] if solver["LR_SCHEDULER_NAME"] == "WarmupMultiStepLR" else ()
    schedule = Schedule(
        burn_in=semi.burn_in,
        max_iter=solver["MAX_ITER"],
        first_drop=min(drops, default=solver["MAX_ITER"]),
        ramp_steps=semi.ramp_steps,
        ema=semi.ema,
        seed=config["SEED"],
    )
    options = None
    if semi.method in _KINDS:
        _, kind, section = _KINDS[semi.method]
        options = from_section(kind, config[section])
    return build_method(semi.method, student, schedule, options, sum_over_processes)
