"""Hooks around Detectron2's step: the teacher's update and weights, exact resume, metrics, the collapse warning."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import Tensor

from sed.d2.checkpoint import export
from sed.d2.config import TRAINED_FOR, trained_for
from sed.runtime.checkpoint_files import checkpoint_path, prune, read
from sed.runtime.guards import Counters, watch_collapse
from sed.runtime.rng import rng_state, set_rng_state
from sed.runtime.stopping import Stopped, asked
from sed.runtime.tracking import Tracker

log = logging.getLogger(__name__)
METRIC_PERIOD = 20  # steps between two transfers of metrics to the host, as Detectron2's writers have it


class TeacherUpdate(HookBase):
    """Updates the teacher after every step (Eq. 4)."""

    def after_step(self) -> None:
        """Average the student into the teacher."""
        self.trainer.method.update_teacher(self.trainer.iter)


class Checkpoints(HookBase):
    """Saves every `period` steps and at the end as checkpoint_<steps done>.pth, and keeps the newest few.

    It also holds what an exact resume needs beyond Detectron2's own state: every process's random numbers and
    RetinaNet's running loss normaliser, which is no part of its state_dict. The loader needs none: its
    position is the iteration.
    """

    def __init__(self, period: int, kept: int) -> None:
        self.period, self.kept = period, kept
        self._states: list[dict[str, Any]] = []

    def before_train(self) -> None:
        """Go on where the checkpoint was written."""
        seek = getattr(self.trainer.data_loader, "seek", None)
        if seek:
            seek(self.trainer.start_iter)
        elif self.trainer.start_iter:
            log.warning("the data loader has no seek(step): resuming is not exact")
        if not self._states:
            return
        if len(self._states) != comm.get_world_size():
            log.warning(
                "the checkpoint was written by %d processes, this run has %d: it goes on, but not bit for bit",
                len(self._states),
                comm.get_world_size(),
            )
            return
        mine = self._states[comm.get_rank()]
        set_rng_state(mine["rng"])
        modules = dict(self.trainer.method.student.named_modules())
        for name, value in mine["loss_normalizer"].items():
            modules[name].loss_normalizer = value

    def after_step(self) -> None:
        """Save where it is due; all processes together, since each has its own random numbers."""
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            self.save()

    def save(self) -> None:
        """Save now; the file is whole when any process goes on."""
        path = checkpoint_path(self.trainer.cfg.OUTPUT_DIR, self.trainer.iter + 1)
        student = self.trainer.method.student
        normalizer = {n: m.loss_normalizer for n, m in student.named_modules() if hasattr(m, "loss_normalizer")}
        self._states = comm.all_gather({"rng": rng_state(), "loss_normalizer": normalizer})
        if comm.is_main_process():
            self.trainer.checkpointer.save(
                path.stem, iteration=self.trainer.iter, **{TRAINED_FOR: trained_for(self.trainer.cfg)}
            )
            prune(path, self.kept)
        comm.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """The random numbers and loss normalisers of every process."""
        return {"processes": self._states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state; it is applied in `before_train`."""
        self._states = state["processes"]


class Stop(HookBase):
    """Ends the run after the step in which SIGINT or SIGTERM came to any process; the last hook: all else is written.

    Args:
        checkpoints: writes the checkpoint where none of this step was due.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def after_step(self) -> None:
        """Save and raise Stopped; the processes agree, for a signal may reach one of them a step later."""
        number, done = asked(), self.trainer.iter + 1
        if comm.get_world_size() > 1:
            told = torch.tensor(number, device=next(self.trainer.model.parameters()).device)
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
            number = int(told)
        if number and done < self.trainer.max_iter:
            if done % self.checkpoints.period:
                self.checkpoints.save()
            path = checkpoint_path(self.trainer.cfg.OUTPUT_DIR, done)
            raise Stopped(number, f"after step {done}; {path} is whole; go on with --resume")


class TeacherWeights(HookBase):
    """Leaves the teacher as plain Detectron2 checkpoints: model_best.pth after evaluations, model_final.pth at the end.

    Which evaluation was best is read back from model_best.pth, so that a resumed run knows it too.
    """

    def __init__(self, first_test_set: str, several: bool) -> None:
        self.first_test_set, self.several = first_test_set, several
        self.best = {"AP": math.nan, "step": -1}
        self._seen: Any = None

    def before_train(self) -> None:
        """A resumed run goes on from its best teacher so far."""
        path = Path(self.trainer.cfg.OUTPUT_DIR) / "model_best.pth"
        if self.trainer.start_iter and path.is_file():
            self.best = read(path)["best"]

    def after_step(self) -> None:
        """Look at a new evaluation."""
        self._look()

    def after_train(self) -> None:
        """Look at the last evaluation, and leave the final teacher, unless training failed."""
        self._look()
        if comm.is_main_process() and self.trainer.iter >= self.trainer.max_iter:
            export(self.trainer.method.teacher.module, self._path("model_final.pth"), self.trainer.cfg)

    def _look(self) -> None:
        results = getattr(self.trainer, "_last_eval_results", None)
        if not comm.is_main_process() or not results or results is self._seen:
            return
        self._seen = results
        teacher = results["teacher"][self.first_test_set] if self.several else results["teacher"]
        ap = float(teacher.get("bbox", {}).get("AP", math.nan))
        if math.isnan(self.best["AP"]) or ap > self.best["AP"]:
            self.best = {"AP": ap, "step": min(self.trainer.iter + 1, self.trainer.max_iter)}
            log.info("best teacher so far: AP %.2f at step %d", ap, self.best["step"])
            export(self.trainer.method.teacher.module, self._path("model_best.pth"), self.trainer.cfg, best=self.best)

    def _path(self, name: str) -> Path:
        return Path(self.trainer.cfg.OUTPUT_DIR) / name


class Metrics(HookBase):
    """Writes the method's metrics to the storage, and warns of a collapsed teacher."""

    def __init__(self, collapse_steps: int) -> None:
        self.collapse_steps, self.counters = collapse_steps, Counters()
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def after_step(self) -> None:
        """Add up on the device; one transfer every METRIC_PERIOD steps."""
        for name, value in self.trainer.method.metrics.items():
            value = torch.as_tensor(value).detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        done = self.trainer.iter + 1
        if done % METRIC_PERIOD and done != self.trainer.max_iter:
            return
        means = {name: float(value) / self._steps for name, value in self._sums.items()}
        watch_collapse(self.counters, means, done, self._steps, self.collapse_steps)
        self.trainer.storage.put_scalars(**means, smoothing_hint=False)
        self._sums, self._steps = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """The state of the collapse warning."""
        return {"silent": self.counters.silent, "warned": self.counters.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.counters.silent, self.counters.warned = state["silent"], state["warned"]


class TrackerWriter(EventWriter):
    """Sends what Detectron2's storage has to a tracker."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self._last = tracker, -1

    def write(self) -> None:
        """Send the newest scalars, those of each iteration together."""
        rows: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest().items():
            if iteration > self._last:
                rows.setdefault(iteration, {})[name] = float(value)
        for iteration, row in sorted(rows.items()):
            self.tracker.log(iteration + 1, row)  # iteration i ends step i + 1
            self._last = iteration

    def close(self) -> None:
        """Send what waits."""
        self.tracker.close()
