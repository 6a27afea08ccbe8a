"""The teacher's rate (Eq. 4) and the weight of the unsupervised losses, as functions of the step (docs/method.md 7).

They have no state, so that a resumed run needs none. Steps count from 0. `ema_rate(step)` is the rate of the update
that follows the optimizer step `step`; `ramp(step)` scales the unsupervised losses of that step itself. Example, the
paper on COCO 10 %: burn_in = 10000. The updates after steps 0..9999 copy the student, step 10000 is the first with
unlabelled images, and the update after it averages.
"""

from __future__ import annotations

import math

POLICIES = ("step", "cosine", "constant")


def ema_rate(
    step: int, *, policy: str, start: float, end: float, first_drop: int, max_iter: int, burn_in: int
) -> float:
    """The rate a of Eq. 4, theta_t = a theta_t + (1 - a) theta_s.

    Args:
        step: the optimizer step just made, counted from 0.
        policy: "step" (`start`, then `end` from `first_drop` on), "cosine" (`start` at 0 to `end` at
            `max_iter`, over the whole run, burn-in included) or "constant" (`start`).
        start: first rate, in [0, 1].
        end: last rate, in [0, 1].
        first_drop: step of the first learning-rate drop.
        max_iter: steps of the whole run, > 0.
        burn_in: steps during which the rate is 0: the teacher is a copy of the student.

    Raises:
        ValueError: for an unknown policy, a rate outside [0, 1] or max_iter <= 0.
    """
    if policy not in POLICIES:
        raise ValueError(f"EMA policy: expected one of {', '.join(POLICIES)}, got {policy!r}")
    if not (0.0 <= start <= 1.0 and 0.0 <= end <= 1.0):
        raise ValueError(f"EMA rates: expected start and end in [0, 1], got {start} and {end}")
    if max_iter <= 0:
        raise ValueError(f"EMA schedule: expected max_iter > 0, got {max_iter}")
    if step < burn_in:
        return 0.0
    if policy == "constant":
        return start
    if policy == "step":
        return start if step < first_drop else end
    where = min(max(step / max_iter, 0.0), 1.0)
    return end + (start - end) * (1.0 + math.cos(math.pi * where)) / 2.0


def ramp(step: int, *, burn_in: int, ramp_steps: int) -> float:
    """Factor in [0, 1] on the unsupervised weights: 0 up to `burn_in`, 1 from `ramp_steps` later on.

    Linear in between; with ramp_steps = 0 it is 1 at `burn_in` already (the paper).

    Raises:
        ValueError: for ramp_steps < 0.
    """
    if ramp_steps < 0:
        raise ValueError(f"ramp: expected ramp_steps >= 0, got {ramp_steps}")
    if step < burn_in:
        return 0.0
    if ramp_steps == 0:
        return 1.0
    return min((step - burn_in) / ramp_steps, 1.0)
