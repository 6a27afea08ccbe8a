"""Several training runs at once, one process each, under one progress view for a person."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sed.studies.report import METRICS_FILE, read_metrics

UNSUPERVISED_COST = 3.4  # a step with unlabelled images, in supervised steps, in the quick start; only the ETA uses it
POLL_SECONDS = 0.5
TAIL = 15  # lines of a failed run's log


class ArmError(RuntimeError):
    """A run that failed; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Arm:
    """One run.

    Attributes:
        label: its name beside the bar.
        command: the words to execute.
        folder: its OUTPUT_DIR; the log is written beside it, as <folder>.log.
        steps: of the whole run.
        supervised_steps: how many of them use no unlabelled image.
    """

    label: str
    command: Sequence[str]
    folder: Path
    steps: int
    supervised_steps: int

    @property
    def log(self) -> Path:
        """Where everything goes that the run prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def work(self, step: int) -> float:
        """Steps so far in units of supervised steps."""
        return min(step, self.supervised_steps) + UNSUPERVISED_COST * max(0, step - self.supervised_steps)


def run_side_by_side(arms: Sequence[Arm], threads: int, line_seconds: float = 15.0) -> list[float]:
    """Run all arms at the same time.

    Args:
        arms: their folders need not exist.
        threads: of each process.
        line_seconds: without a terminal there are no bars but a line every so often.

    Returns:
        Wall-clock seconds of each, start-up and evaluations included.

    Raises:
        ArmError: as soon as one fails; the others are stopped.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    terminal = sys.stdout.isatty()
    runs: list[subprocess.Popen] = []
    bars = [tqdm(total=arm.work(arm.steps), position=i, disable=not terminal) for i, arm in enumerate(arms)]
    seconds: dict[int, float] = {}
    began = last_line = time.monotonic()
    try:
        for arm in arms:
            arm.log.parent.mkdir(parents=True, exist_ok=True)
            with open(arm.log, "w") as log:
                runs.append(subprocess.Popen(arm.command, stdout=log, stderr=subprocess.STDOUT, env=environment))
        while len(seconds) < len(arms):
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            for i, (arm, run) in enumerate(zip(arms, runs, strict=True)):
                if i not in seconds and run.poll() is not None:
                    if run.returncode:
                        raise ArmError(_epitaph(arm, run.returncode))
                    seconds[i] = now - began
            states = [_state(arm, seconds.get(i), now - began) for i, arm in enumerate(arms)]
            for arm, bar, (step, text) in zip(arms, bars, states, strict=True):
                bar.n = arm.work(step)
                bar.bar_format = f"{arm.label:<20}{{percentage:3.0f}}%|{{bar:24}}| {text}"
                bar.refresh()
            if not terminal and (now - last_line >= line_seconds or len(seconds) == len(arms)):
                last_line = now
                words = [f"{arm.label} {text}" for arm, (_, text) in zip(arms, states, strict=True)]
                print(f"{now - began:5.0f} s  " + "   |   ".join(words), flush=True)
    finally:
        for run in runs:
            if run.poll() is None:
                run.terminate()
        for run in runs:
            run.wait()
        for bar in bars:
            bar.close()
    return [seconds[i] for i in range(len(arms))]


def _state(arm: Arm, ended: float | None, elapsed: float) -> tuple[int, str]:
    """(step, words for a person) from what the run has written so far."""
    rows = read_metrics(arm.folder / METRICS_FILE)
    step = rows[-1]["step"] if rows else 0
    scores = [row["teacher/AP"] for row in rows if row.get("teacher/AP") is not None]
    if ended is not None:
        when = f"done in {ended:.0f} s"
    elif step:
        left = int(elapsed * (arm.work(arm.steps) / arm.work(step) - 1))
        when = f"{left // 60}:{left % 60:02d} left"
    else:
        when = "starting"
    return step, f"{step}/{arm.steps} steps, {when}, AP {f'{scores[-1]:.1f}' if scores else '-'}"


def _epitaph(arm: Arm, status: int) -> str:
    lines = arm.log.read_text(errors="replace").splitlines()[-TAIL:]
    return f"{arm.label} ended with status {status}; the end of {arm.log}:\n    " + "\n    ".join(lines)
