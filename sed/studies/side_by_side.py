"""Several training runs at once, one process each, under one progress view for a person."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sed.studies.run_results import METRICS_FILE, read_metrics

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


class Display:
    """The progress of runs for a person: a bar each on a terminal, elsewhere a line now and then. A context."""

    def __init__(self, arms: Sequence[Arm], line_seconds: float = 15.0) -> None:
        self.arms, self.line_seconds, self.terminal = arms, line_seconds, sys.stdout.isatty()
        self.bars = [
            tqdm(total=arm.work(arm.steps), position=i, disable=not self.terminal) for i, arm in enumerate(arms)
        ]
        self.began = self.last_line = time.monotonic()
        self._stop, self._thread = threading.Event(), None

    def show(self, seconds: dict[int, float]) -> None:
        """Bring it up to date; `seconds` of the runs that have ended."""
        now = time.monotonic()
        states = [_state(arm, seconds.get(i), now - self.began) for i, arm in enumerate(self.arms)]
        for arm, bar, (step, text) in zip(self.arms, self.bars, states, strict=True):
            bar.n = arm.work(step)
            bar.bar_format = f"{arm.label:<20}{{percentage:3.0f}}%|{{bar:24}}| {text}"
            bar.refresh()
        if not self.terminal and (now - self.last_line >= self.line_seconds or len(seconds) == len(self.arms)):
            self.last_line = now
            words = [f"{arm.label} {text}" for arm, (_, text) in zip(self.arms, states, strict=True)]
            print(f"{now - self.began:5.0f} s  " + "   |   ".join(words), flush=True)

    def keep_showing(self) -> None:
        """Show it from a thread until the context ends."""

        def run() -> None:
            while not self._stop.wait(POLL_SECONDS):
                self.show({})

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        for bar in self.bars:
            bar.close()


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
    runs: list[subprocess.Popen] = []
    seconds: dict[int, float] = {}
    with Display(arms, line_seconds) as display:
        try:
            for arm in arms:
                arm.log.parent.mkdir(parents=True, exist_ok=True)
                with open(arm.log, "w") as log:
                    runs.append(subprocess.Popen(arm.command, stdout=log, stderr=subprocess.STDOUT, env=environment))
            while len(seconds) < len(arms):
                time.sleep(POLL_SECONDS)
                for i, (arm, run) in enumerate(zip(arms, runs, strict=True)):
                    if i not in seconds and run.poll() is not None:
                        if run.returncode:
                            raise ArmError(_epitaph(arm, run.returncode))
                        seconds[i] = time.monotonic() - display.began
                display.show(seconds)
        finally:
            for run in runs:
                if run.poll() is None:
                    run.terminate()
            for run in runs:
                run.wait()
    return [seconds[i] for i in range(len(arms))]


def _state(arm: Arm, ended: float | None, elapsed: float) -> tuple[int, str]:
    """(step, words for a person) from what the run has written so far."""
    rows = read_metrics(arm.folder / METRICS_FILE)
    step = rows[-1]["step"] if rows else 0
    scores = [row["teacher/AP"] for row in rows if row.get("teacher/AP") is not None]
    if ended is not None:
        when = f"done in {ended:.0f} s"
    elif step:
        timed = [row for row in rows if row.get("seconds_per_step")][-1:]
        pace = elapsed / arm.work(step)  # seconds a supervised step
        for row in timed:
            pace = row["seconds_per_step"] / (arm.work(row["step"]) - arm.work(row["step"] - 1))
        left = int(pace * (arm.work(arm.steps) - arm.work(step)))
        when = f"{left // 60}:{left % 60:02d} left"
    else:
        when = "starting"
    return step, f"{step}/{arm.steps} steps, {when}, AP {f'{scores[-1]:.1f}' if scores else '-'}"


def _epitaph(arm: Arm, status: int) -> str:
    lines = arm.log.read_text(errors="replace").splitlines()[-TAIL:]
    return f"{arm.label} ended with status {status}; the end of {arm.log}:\n    " + "\n    ".join(lines)
