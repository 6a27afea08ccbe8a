"""What every method shares: student, teacher, schedules, and the step protocol that all drivers follow.

A driver (a plain loop, Detectron2's trainers, DDP around the method) does, for step = 0, 1, 2, ...:

    unlabeled = next(stream) if method.needs_unlabeled(step) else None
    losses = method(labeled, unlabeled, step)      # weighted scalars; their sum is the total of Eq. 1
    sum(losses.values()).backward(); optimizer.step()
    method.update_teacher(step)                    # Eq. 4
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sed.core.schedules import ema_rate, ramp
from sed.core.structures import LabeledBatch, UnlabeledBatch
from sed.core.teacher import Teacher
from sed.detectors.base import Detector
from sed.options.methods import EMA, SemiOptions


@dataclass(frozen=True)
class Schedule:
    """When the teacher starts and how fast it follows (docs/method.md, section 7).

    Attributes:
        burn_in: supervised steps; until then the teacher is a copy of the student.
        max_iter: steps of the whole run.
        first_drop: step of the first learning-rate drop.
        ramp_steps: steps over which the unsupervised weights rise after burn-in; 0: at once.
        ema: the rate a of Eq. 4.
        seed: of what a step draws.
    """

    burn_in: int
    max_iter: int
    first_drop: int
    ramp_steps: int = SemiOptions.ramp_steps
    ema: EMA = field(default_factory=EMA)
    seed: int = 0

    def ema_rate(self, step: int) -> float:
        """The rate a of Eq. 4 after `step`."""
        return ema_rate(
            step,
            policy=self.ema.policy,
            start=self.ema.start,
            end=self.ema.end,
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
    """Autocast off on the device of `tensor`: for a teacher whose boxes become ground truth."""
    return torch.autocast(tensor.device.type, enabled=False)


@torch.no_grad()
def count_confident(logits: Iterable[Tensor], softmax: bool) -> Tensor:
    """How many of the teacher's predictions have a foreground class with a probability of at least 1/2.

    Args:
        logits: tensors [.., C] of one head.
        softmax: background last; else each logit is a sigmoid's.
    """
    if softmax:
        return torch.stack([(x.softmax(-1)[..., :-1].amax(-1) >= 0.5).sum() for x in logits]).sum()
    return torch.stack([(x.amax(-1) >= 0).sum() for x in logits]).sum()


class Method(nn.Module, ABC):
    """A training method: owns student and teacher, turns a pair of batches into weighted losses.

    Attributes:
        student: the detector that the optimizer trains.
        teacher: its moving average, always in eval mode, never in the optimizer; `.module` is the detector.
        metrics: what the last forward saw besides losses, detached, for logging only. "teacher_positives" is the number
            of predictions of the teacher in this step that it is confident of: of its detections those that are
            pseudo-labels; where a method has none, the predictions of the last head that `count_confident` counts.
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
