"""What every method shares: student, teacher, schedule, and the calls of a training step.

A training loop (a plain one, or Detectron2's trainers, with or without DDP) does, for step = 0, 1, 2, ...:

    unlabeled = next(stream) if method.needs_unlabeled(step) else None
    losses = method(labeled, unlabeled, step)      # weighted scalars; their sum is the total of Eq. 1
    sum(losses.values()).backward(); optimizer.step()
    method.update_teacher(step)                    # Eq. 4
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sed.core.schedules import ema_rate, ramp
from sed.core.structures import DenseLevel, LabeledBatch, QueryPrediction, RegionPrediction, UnlabeledBatch
from sed.core.targets import is_softmax
from sed.core.teacher import Teacher
from sed.detectors.base import Detector
from sed.options.methods import EMA, SemiOptions


@dataclass(frozen=True)
class Schedule:
    """Burn-in, ramp and the teacher's rate over the steps of a run (docs/method.md 7).

    Attributes:
        burn_in: supervised steps; until then the teacher is a copy of the student.
        max_iter: steps of the whole run.
        first_drop: step of the first learning-rate drop.
        ramp_steps: steps over which the unsupervised weights rise linearly after burn-in; 0: at once.
        ema: policy and values of the rate a of Eq. 4.
        seed: of the random sizes of views (`sed.core.views.draw_scale` and `draw_size`).
    """

    burn_in: int
    max_iter: int
    first_drop: int
    ramp_steps: int = SemiOptions.ramp_steps
    ema: EMA = field(default_factory=EMA)
    seed: int = 0

    def ema_rate(self, step: int) -> float:
        """The rate a of Eq. 4 for the update after optimizer step `step`."""
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
    """A context in which batch norm in train mode keeps its running statistics as they are (docs/method.md 7).

    It still normalises by the batch. The exported model normalises by the running statistics. Two of three passes are
    on unlabelled views and would dominate them, so they come from the labelled images only [D].
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
    """A context without autocast on the device of `tensor`: boxes that become pseudo-labels need float32."""
    return torch.autocast(tensor.device.type, enabled=False)


@torch.no_grad()
def count_confident(predictions: Sequence[DenseLevel | RegionPrediction | QueryPrediction]) -> Tensor:
    """The number of predictions of a head whose best foreground class has a probability of at least 1/2."""
    if is_softmax(predictions[0]):
        return torch.stack([(p.logits.softmax(-1)[..., :-1].amax(-1) >= 0.5).sum() for p in predictions]).sum()
    return torch.stack([(p.logits.amax(-1) >= 0).sum() for p in predictions]).sum()


class Method(nn.Module, ABC):
    """A training method: owns student and teacher, turns a labelled and an unlabelled batch into weighted losses.

    Attributes:
        student: the detector that the optimizer trains.
        teacher: its moving average, always in eval mode, never in the optimizer; `.module` is the detector.
        metrics: numbers of the last step besides its losses, detached, for the log only. "teacher_positives" is the
            number of confident predictions of the teacher: the number of pseudo-labels; in `sed`, which has none,
            those that `count_confident` finds: of the region head, else of the queries, else of the anchors.
        uses_unlabeled: whether the method reads unlabelled images after burn-in.
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
        """The weighted losses of one step; their sum is L of Eq. 1.

        Args:
            labeled: n_s labelled images.
            unlabeled: n_u unlabelled images; None where `needs_unlabeled(step)` is False.
            step: of the run, counted from 0.

        Returns:
            Scalars named `term/head_part`, such as "scale/dense_cls": term sup, scale, distill, pseudo or pseudo_half;
            head dense, region or query; part cls or box.
        """

    def needs_unlabeled(self, step: int) -> bool:
        """Whether `step` uses unlabelled images: after burn-in, if the method does at all."""
        return self.uses_unlabeled and step >= self.schedule.burn_in

    def update_teacher(self, step: int) -> None:
        """Eq. 4; call it once after every optimizer step. During burn-in the rate is 0: the teacher is a copy."""
        self.teacher.update(self.student, self.schedule.ema_rate(step))

    def supervised(self, labeled: LabeledBatch) -> dict[str, Tensor]:
        """L_sup of Eq. 1: the detector's own losses on the labelled images."""
        return {f"sup/{name}": loss for name, loss in self.student.supervised_losses(labeled).items()}
