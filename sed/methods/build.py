"""Methods by the names of SEMI.METHOD."""

from __future__ import annotations

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
