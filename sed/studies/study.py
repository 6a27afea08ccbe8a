"""What every comparison of runs needs: a command in a process of its own, and how numbers over seeds are written."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)
_running: set[subprocess.Popen] = set()


def call(script: str | Path, words: Sequence[str], log: Path, threads: int = 1) -> None:
    """Run a Python script to its end; what it prints is appended to `log`.

    Where a process that was started with the same `log` still runs (its caller was killed), its end is waited for.

    Args:
        script: path of the script.
        words: its command line.
        log: a file; its folder is made.
        threads: of the process, whatever this machine has.

    Raises:
        SystemExit: where it fails, with its command and the end of its log.
    """
    command = [sys.executable, str(script), *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        _lock(out)
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with subprocess.Popen(command, stdout=out, stderr=out, env=env) as process:
            _running.add(process)
            try:
                code = process.wait()
            finally:
                _running.discard(process)
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)}\nended with code {code}; the end of {log}:\n{tail}")


def stop_all() -> None:
    """End every process that `call` waits for, in whatever thread; those calls then fail."""
    for process in list(_running):
        process.terminate()


def _lock(stream: TextIO) -> None:
    """Wait until nobody else writes this file: a process keeps the lock of what it prints to while it lives."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("%s: a process of an earlier call still runs; waiting for its end", stream.name)
        fcntl.flock(stream, fcntl.LOCK_EX)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`mean ± deviation` of the finite values; a dash where there is none."""
    finite = [v for v in values if not math.isnan(v)]
    if not finite:
        return "-"
    mean = f"{statistics.mean(finite):.{digits}f}"
    return mean if len(finite) < 2 else f"{mean} ± {statistics.stdev(finite):.{digits}f}"


def interval(differences: Sequence[float], digits: int = 1) -> str:
    """`mean [low, high]`: the 95 % interval of Student's t for the mean of paired differences; one value: itself."""
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.{digits}f}"
    from scipy.stats import t

    half = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"


def slug(name: str) -> str:
    """A name as a folder's."""
    return "".join(c if c.isalnum() else "_" for c in name)
