"""Processes that read data or train as part of a run: they end when the process that started them ends."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import multiprocessing.util  # its exit handler, registered before ours, runs after it
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_OPEN_FILES = 65536


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when the one that started it ends, however that ends (on Linux).

    Args:
        parent: the pid of the process that started this one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended before
            os._exit(1)


def leave_signals_to_parent() -> None:
    """Ignore Ctrl-C and SIGTERM, which a terminal or a scheduler sends to a whole group of processes.

    The parent decides when this process ends: a step that it finishes before it stops needs its batch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def allow_open_files(number: int) -> None:
    """Let this process have as many files open as it may: a batch from another process is one for each tensor.

    Args:
        number: so many more are tried.

    Raises:
        OSError: where they cannot be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    opened: list[int] = []
    try:
        for _ in range(number):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for each in opened:
            os.close(each)


@atexit.register
def end_workers() -> None:
    """End what reads for this process, which ends: multiprocessing would ask by SIGTERM, and wait."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
