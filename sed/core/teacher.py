"""The teacher: an exponential moving average of the student (Eq. 4, docs/method.md 7).

    theta_t = a theta_t + (1 - a) theta_s      parameters and float buffers
    theta_t = theta_s                          integer and bool buffers (counters)

It is a `torch.optim.swa_utils.AveragedModel` with an update of its own: `update_parameters` has one fixed rate and
reads a counter back from the device at every call; `update` takes the rate of each step.
"""

from __future__ import annotations

import hashlib
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Teacher(AveragedModel):
    """The teacher theta_t: a copy of the student that only `update` changes, always in eval mode, never with gradient.

    Attributes:
        module: the averaged detector.
    """

    def __init__(self, student: nn.Module) -> None:
        """Copy `student`, with all its parameters and buffers.

        Raises:
            ValueError: for a student with fp16 or bf16 weights: an average with a = 0.99 needs float32.
        """
        for name, weight in student.named_parameters():
            if weight.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"Teacher: student parameter {name!r} is {weight.dtype}; keep the weights in float32 and "
                    "let autocast (SOLVER.AMP) choose the dtype of the computation"
                )
        super().__init__(student, use_buffers=True)
        self.module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, whatever `mode` is."""
        super().train(False)
        return self

    @torch.no_grad()
    def update(self, student: nn.Module, rate: float) -> None:
        """Eq. 4 in place: no allocation of weights and no wait for the device.

        Args:
            student: a module of the same architecture, on the same device.
            rate: a in [0, 1]; 0 makes an exact copy, 1 changes nothing but the counters.

        Raises:
            ValueError: for a rate outside [0, 1] or a student with other tensors.
        """
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"Teacher.update: expected a rate in [0, 1], got {rate}")
        averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        copied: tuple[list[Tensor], list[Tensor]] = ([], [])
        mine = list(chain(self.module.parameters(), self.module.buffers()))
        theirs = list(chain(student.parameters(), student.buffers()))
        if len(mine) != len(theirs):
            raise ValueError(f"Teacher.update: expected {len(mine)} tensors, the student has {len(theirs)}")
        for own, other in zip(mine, theirs, strict=True):
            teachers, students = averaged if rate > 0.0 and own.is_floating_point() else copied
            teachers.append(own)
            students.append(other)
        if averaged[0]:
            torch._foreach_lerp_(averaged[0], averaged[1], 1.0 - rate)
        if copied[0]:
            torch._foreach_copy_(copied[0], copied[1])
        self.n_averaged.add_(1)

    def update_parameters(self, model: nn.Module) -> None:
        """Not for a teacher: the rate changes with the step, so call `update`."""
        raise TypeError("Teacher: call update(student, rate); update_parameters has no rate")

    def checksum(self) -> str:
        """SHA-256 of all weights and buffers, to compare processes and resumed runs. Waits for the device."""
        digest = hashlib.sha256()
        for name, tensor in chain(self.module.named_parameters(), self.module.named_buffers()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
