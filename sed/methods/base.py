"""What every method shares: student, teacher, schedules, and the step protocol that all drivers follow.

A driver (a plain loop, Detectron2's trainers, DDP around the method) does, for step = 0, 1, 2, ...:

    unlabeled = next(stream) if method.needs_unlabeled(step) else None
    losses = method(labeled, unlabeled, step)      # weighted scalars; their sum is the total of Eq. 1
    sum(losses.values()).backward(); optimizer.step()
    method.update_teacher(step)                    # Eq. 4
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sed.core.schedules import ema_rate, ramp
from sed.core.structures import LabeledBatch, UnlabeledBatch
from sed.core.teacher import Teacher
from sed.detectors.base import Detector


@dataclass(frozen=True)
class Schedule:
    """When the teacher starts and how fast it follows (METHOD 7).

    Attributes:
        burn_in: supervised steps; until then the teacher is a copy of the student.
        ramp_steps: steps over which the unsupervised weights rise after burn-in; 0: at once.
        ema_policy: "step" (ema_start, then ema_end from first_drop), "cosine" or "constant" (ema_start).
        ema_start: the rate a in [0, 1].
        ema_end: the rate after the first drop, or at the end of the cosine.
        first_drop: step of the first learning-rate drop.
        max_iter: steps of the whole run.
    """

    burn_in: int
    max_iter: int
    first_drop: int
    ramp_steps: int = 0
    ema_policy: str = "step"
    ema_start: float = 0.99
    ema_end: float = 0.9

    def ema_rate(self, step: int) -> float:
        """A of Eq. 4 after `step`."""
        return ema_rate(
            step,
            policy=self.ema_policy,
            start=self.ema_start,
            end=self.ema_end,
            first_drop=self.first_drop,
            max_iter=self.max_iter,
            burn_in=self.burn_in,
        )

    def ramp(self, step: int) -> float:
        """Factor in [0, 1] on the unsupervised weights at `step`."""
        return ramp(step, burn_in=self.burn_in, ramp_steps=self.ramp_steps)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norm in train mode goes on normalising by the batch, but its running statistics stay as they are.

    They are what the exported model normalises by. Left alone, passes on strong and half-size views would make up two
    thirds of them, and no test image looks like those. So they come from the labelled images alone.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Autocast off on the device of `tensor`: for a teacher whose boxes become labels (METHOD 7)."""
    return torch.autocast(tensor.device.type, enabled=False)


class Method(nn.Module, ABC):
    """A training method: owns student and teacher, turns a pair of batches into weighted losses.

    Attributes:
        student: the detector that the optimizer trains.
        teacher: its moving average, always in eval mode, never in the optimizer; `.module` is the detector.
        metrics: what the last forward saw besides losses, detached, for logging only.
    """

    uses_unlabeled = True

    def __init__(self, student: Detector, schedule: Schedule) -> None:
        super().__init__()
        self.student = student
        self.teacher = Teacher(student)
        self.schedule = schedule
        self.metrics: dict[str, Tensor] = {}

    @abstractmethod
    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, step: int) -> dict[str, Tensor]:
        """Weighted losses of one step, named `term/head_part`; `unlabeled` is None where it is not needed."""

    def needs_unlabeled(self, step: int) -> bool:
        """Whether `step` reads the unlabelled stream at all."""
        return self.uses_unlabeled and step >= self.schedule.burn_in

    def update_teacher(self, step: int) -> None:
        """Eq. 4, once after every optimizer step; during burn-in the rate is 0: a copy."""
        self.teacher.update(self.student, self.schedule.ema_rate(step))

    def supervised(self, labeled: LabeledBatch) -> dict[str, Tensor]:
        """L_sup of Eq. 1: the stock detector's own losses on the labelled images."""
        return {f"sup/{name}": loss for name, loss in self.student.supervised_losses(labeled).items()}
