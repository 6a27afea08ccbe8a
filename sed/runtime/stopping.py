"""How a run is stopped from outside: Ctrl-C (SIGINT) and SIGTERM end it at the end of a step, with a checkpoint.

with catch_signals():  # the command
with at_step_end():  # the training loop
...
if asked():
save()
raise Stopped(asked(), "what was saved")
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_SECONDS = 1.0  # one Ctrl-C reaches a process twice where its parent passes it on


class Stopped(KeyboardInterrupt):
    """The run was stopped by a signal.

    Attributes:
        number: the signal.
        code: the exit code that says so.
    """

    def __init__(self, number: int, told: str = "") -> None:
        super().__init__(number, told)
        self.number, self.told, self.code = number, told, 128 + number

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return f"stopped by {name}{f': {self.told}' if self.told else ''}"


class _Request:
    """The signal that asked to stop (0: none), when, and whether the end of the step is waited for."""

    number, since, deferred = 0, 0.0, False


def _handle(number: int, frame: FrameType | None) -> None:
    first = not _Request.number
    if not first and time.monotonic() - _Request.since < _AGAIN_SECONDS:
        return
    _Request.number, _Request.since = number, time.monotonic()
    if not (first and _Request.deferred):  # asked again: at once
        raise Stopped(number)


@contextmanager
def catch_signals(numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """A context in which the signals raise Stopped, within `at_step_end` only when asked for a second time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Request.number = 0
    before = {number: signal.signal(number, _handle) for number in numbers}
    try:
        yield
    finally:
        _Request.number = 0
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: set outside Python


@contextmanager
def at_step_end(deferred: bool = True) -> Iterator[None]:
    """A context whose code looks at `asked` after every step; with False, within it, a part that ends at once."""
    before, _Request.deferred = _Request.deferred, deferred
    try:
        if not deferred and _Request.number:
            raise Stopped(_Request.number)
        yield
        if not before and _Request.number:  # too late for the loop
            raise Stopped(_Request.number)
    finally:
        _Request.deferred = before


def asked() -> int:
    """The signal that has asked this process to stop; 0: none has."""
    return _Request.number
