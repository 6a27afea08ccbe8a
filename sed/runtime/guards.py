"""Checks beside the training loop: steps whose loss is not finite are counted, a collapsed teacher is warned of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

FEW = 0.5  # confident detections a step, on all images together; a teacher with fewer counts as collapsed


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says why and what to try."""


@dataclass
class Counters:
    """Skipped steps, the state of the collapse warning, best and last evaluation; part of every checkpoint.

    Attributes:
        skipped: non-finite steps in all.
        skipped_in_row: non-finite steps since the last good one.
        silent: steps since the teacher last had confident detections (at least `FEW` a step).
        warned: whether the collapse warning was given.
        best_step: steps done when the best teacher was evaluated; -1 before the first evaluation.
        best: the best teacher's evaluation.
        last: "student" | "teacher" -> the last evaluation.
        owed: whether an evaluation failed that is to be made before the next step.
    """

    skipped: int = 0
    skipped_in_row: int = 0
    silent: int = 0
    warned: bool = False
    best_step: int = -1
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, dict[str, float]] = field(default_factory=dict)
    owed: bool = False


def count_step(counters: Counters, good: bool, step: int, limit: int, last_good: Callable[[], Path | None]) -> None:
    """Count a step that was made (`good`) or skipped because loss or gradient was not finite.

    Args:
        counters: where it is counted.
        good: whether the step was made.
        step: its number.
        limit: so many skipped steps in a row end the training.
        last_good: finds the newest checkpoint, for the message.

    Raises:
        TrainingError: after `limit` skipped steps in a row.
    """
    if good:
        counters.skipped_in_row = 0
        return
    counters.skipped += 1
    counters.skipped_in_row += 1
    log.warning("step %d: loss or gradient is not finite; step skipped (%d in all)", step, counters.skipped)
    if counters.skipped_in_row >= limit:
        raise diverged(step, f"was not finite {counters.skipped_in_row} times in a row", last_good())


def diverged(step: int, what: str, last_good: Path | None) -> TrainingError:
    """The error of a training that cannot go on: what happened, and what to try."""
    return TrainingError(
        f"step {step}: loss or gradient {what}. The last good checkpoint is {last_good or 'not written yet'}. "
        "Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED True; then --resume"
    )


def watch_collapse(counters: Counters, means: Mapping[str, float], step: int, window: int, limit: int) -> None:
    """Warn once when the teacher has found next to nothing (`FEW`) on the unlabelled images for `limit` steps.

    Args:
        counters: where the silent steps are counted.
        means: of the last `window` steps; looked at: "teacher_positives" (absent during burn-in).
        step: steps done.
        window: steps that `means` covers.
        limit: SEMI.COLLAPSE_STEPS; 0: never warn.
    """
    positives = means.get("teacher_positives")
    if not limit or positives is None:
        return
    counters.silent = 0 if positives >= FEW else counters.silent + window
    if counters.silent >= limit and not counters.warned:
        counters.warned = True
        log.warning(
            "step %d: the teacher has found next to nothing on the unlabelled images for %d steps, so the student "
            "learns from them that there is nothing. Try a lower SED_PLUS.THRESHOLD or PSEUDO_LABEL.THRESHOLD, a "
            "longer SEMI.BURN_IN, smaller weights (SED_PLUS.WEIGHT and HALF_SIZE_WEIGHT, PSEUDO_LABEL.WEIGHT, "
            "SED.LAMBDA_SCALE and LAMBDA_DISTILL), SEMI.RAMP_STEPS, or a slower teacher (SEMI.EMA.START and END nearer "
            "to 1)",
            step,
            counters.silent,
        )
