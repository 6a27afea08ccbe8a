"""What a run reports: log.txt and stdout, metrics.jsonl, TensorBoard, and one progress bar. Rank 0 only.

Losses are summed on the device and brought to the host once a window (`Window`), never once a step.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from sed.runtime.tracking import Tracker

_FORMAT = "[%(asctime)s %(name)s] %(levelname)s: %(message)s"


class _BarHandler(logging.Handler):
    """Writes to stdout above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def setup_logging(folder: str | Path | None, rank: int = 0) -> logging.Logger:
    """Send the project's log to `folder`/log.txt (appended; None: no file) and to stdout.

    Other ranks speak up for warnings only, and write no file.
    """
    logger = logging.getLogger("sed")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    handlers: list[logging.Handler] = [_BarHandler()]
    if folder is not None and rank == 0:
        handlers.append(logging.FileHandler(Path(folder) / "log.txt"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT if rank == 0 else f"[rank {rank}] {_FORMAT}", "%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    logger.propagate = False
    return logger


class Window:
    """Means of losses and metrics since the last `flush`, kept on the device until then."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Count one value a name; no synchronisation."""
        for name, value in values.items():
            value = value.detach().double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.double)
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def flush(self, device: torch.device) -> dict[str, float]:
        """The means over this window and all processes, in one transfer; empties the window."""
        names = list(self.sums)
        if not names:
            return {}
        means = torch.stack([self.sums[n].to(device) / self.counts[n] for n in names])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(means)
            means /= dist.get_world_size()
        self.sums, self.counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: a resumed run logs the same means."""
        return {"sums": {name: value.cpu() for name, value in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on with a window that `state_dict` saved."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])


class Reporter:
    """metrics.jsonl (one json object a line, key "step"), TensorBoard and the progress bar.

    The first line after some steps also has "seconds_per_step", their mean; evaluations are not in it.

    Args:
        folder: the run's output folder.
        start: steps done before; later lines of metrics.jsonl are cut off (a killed run was further).
        max_iter: steps of the whole run.
        enabled: False on ranks other than 0: nothing is written.
        quiet_seconds: without a terminal, the least time between two progress lines.
        score_name: what the bar calls the last evaluation's score.
        tracker: also gets what is written; closed with the others.
    """

    def __init__(
        self,
        folder: str | Path,
        start: int,
        max_iter: int,
        enabled: bool = True,
        quiet_seconds: float = 20.0,
        score_name: str = "AP",
        tracker: Tracker | None = None,
    ) -> None:
        self.enabled, self.max_iter, self.quiet_seconds, self.score_name = enabled, max_iter, quiet_seconds, score_name
        self.score, self._tracker = math.nan, tracker
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._path = Path(folder) / "metrics.jsonl"
        _truncate(self._path, start)
        self._stream = open(self._path, "a")  # closed in `close`
        self._board = SummaryWriter(str(folder), purge_step=start + 1)
        self._log = logging.getLogger("sed.engine")
        self._bar = tqdm(
            total=max_iter,
            initial=start,
            disable=not sys.stdout.isatty(),
            file=sys.stdout,
            desc="train",
            unit="step",
        )
        self._start, self._began, self._last_line, self._loss = start, time.monotonic(), 0.0, math.nan
        self._mark, self._seconds, self._steps = self._began, 0.0, 0  # of the steps since the last line

    def step(self) -> None:
        """One step is done."""
        if self.enabled:
            self._bar.update()
            now = time.monotonic()
            self._seconds, self._mark, self._steps = self._seconds + now - self._mark, now, self._steps + 1

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record scalars of the state after `step` steps; NaN becomes null in metrics.jsonl."""
        if not self.enabled:
            return
        if self._steps:
            scalars = {**scalars, "seconds_per_step": self._seconds / self._steps}
        row = {"step": step, **{k: (v if math.isfinite(v) else None) for k, v in scalars.items()}}
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        if self._tracker:
            self._tracker.log(step, scalars)
        self._loss = scalars.get("loss", self._loss)
        self._mark, self._seconds, self._steps = time.monotonic(), 0.0, 0

    def show(self, step: int, score: float | None = None) -> None:
        """Bring the bar (or, without a terminal, now and then a line) up to date."""
        if not self.enabled:
            return
        self.score = self.score if score is None else score
        loss, score_text = _text(self._loss, 3), f"{self.score_name} {_text(self.score, 1)}"
        self._bar.set_postfix_str(f"loss {loss}, {score_text}", refresh=False)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= self.quiet_seconds:
            self._last_line = now
            pace = (now - self._began) / max(1, step - self._start)  # seconds a step, evaluations included
            eta = timedelta(seconds=round(pace * (self.max_iter - step)))
            self._log.info(
                "step %d/%d  loss %s  %s  %.3f s/step  ETA %s",
                step,
                self.max_iter,
                loss,
                score_text,
                pace,
                eta,
            )

    def close(self) -> None:
        """Flush and close all files."""
        if self.enabled:
            self._bar.close()
            self._stream.close()
            self._board.close()
            if self._tracker:
                self._tracker.close()


def _text(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _truncate(path: Path, step: int) -> None:
    """Keep the lines of metrics.jsonl up to `step`; a half-written last line goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            continue
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)
