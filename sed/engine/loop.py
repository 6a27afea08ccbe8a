"""What the training loop is given besides models: streams of batches, and how long and how often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


class BatchStream(Protocol):
    """An endless source of batches that knows how many it gave and can go on from there."""

    position: int

    def __iter__(self) -> Iterator[Any]:
        """Go on from `position`."""

    def seek(self, position: int) -> None:
        """Make `position` the number of batches given so far."""


@dataclass(frozen=True)
class LoopOptions:
    """How long a run trains, and how often it saves, evaluates and reports. A config has the defaults.

    Attributes:
        max_iter: optimizer steps of the whole run.
        accumulate: batches a step; their gradients are averaged, the teacher follows once.
        checkpoint_period: steps between checkpoints.
        checkpoints_kept: how many stay.
        eval_period: steps between evaluations; 0: at the end only.
        collapse_steps: warn when the teacher finds nothing for so many steps; 0: never.
        log_period: steps between two transfers of losses to the host.
        max_skipped: so many non-finite steps in a row stop the training.
    """

    max_iter: int
    accumulate: int
    checkpoint_period: int
    checkpoints_kept: int
    eval_period: int
    collapse_steps: int
    log_period: int = 20
    max_skipped: int = 20
