"""What every comparison of runs needs: a command in a process of its own, and how numbers over seeds are written."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def call(script: str | Path, words: Sequence[str], log: Path, threads: int = 1) -> None:
    """Run a Python script to its end; what it prints is appended to `log`.

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
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        code = subprocess.run(command, stdout=out, stderr=out, env=env, check=False).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)}\nended with code {code}; the end of {log}:\n{tail}")


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
