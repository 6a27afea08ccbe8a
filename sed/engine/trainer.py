"""The training loop: batches, losses, gradients, the optimizer's step, the teacher's update, reports, checkpoints.

It drives any `Method` (sed.methods.base) by the step protocol stated there and knows nothing of configs. All
that it needs to go on exactly is in `Trainer.state_dict`, or is a stateless function of the step.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sed.core.structures import LabeledBatch, UnlabeledBatch
from sed.detectors.base import Detector
from sed.engine import checkpoint
from sed.engine.logging import Reporter, Window
from sed.engine.loop import BatchStream, LoopOptions
from sed.engine.solver import Clip, LearningRate, Precision
from sed.methods.base import Method
from sed.runtime.checkpoint_files import checkpoints
from sed.runtime.guards import Counters, count_step, watch_collapse
from sed.runtime.launch import rank, world_size
from sed.runtime.rng import rng_state, set_rng_state
from sed.runtime.stopping import Stopped, asked, at_step_end
from sed.runtime.tracking import Tracker

__all__ = ["BatchStream", "LoopOptions", "Trainer"]
log = logging.getLogger(__name__)
Results = dict[str, float]


class Trainer:
    """Trains a method, step after step, and leaves checkpoints, metrics and the best teacher in `folder`.

    Args:
        method: student and teacher, on `device`.
        optimizer: over the student's parameters.
        learning_rate: of the step.
        labeled: stream of LabeledBatch (this process's share).
        unlabeled: stream of UnlabeledBatch; None where the method needs none.
        evaluate: detector -> metrics (float percent, key "AP" decides which teacher is best); called by all
            processes together; None: no evaluation.
        options: how long and how often.
        precision: mixed precision and loss scaling.
        clip: of the gradients.
        folder: the run's output folder; it exists.
    """

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        learning_rate: LearningRate,
        labeled: BatchStream,
        unlabeled: BatchStream | None,
        evaluate: Callable[[Detector], Results] | None,
        options: LoopOptions,
        precision: Precision,
        clip: Clip,
        folder: str | Path,
        device: torch.device,
    ) -> None:
        self.method, self.optimizer, self.learning_rate = method, optimizer, learning_rate
        self.streams = {"labeled": labeled} | ({} if unlabeled is None else {"unlabeled": unlabeled})
        self.evaluate, self.options, self.precision, self.clip = evaluate, options, precision, clip
        self.folder, self.device = Path(folder), device
        self.step = 0  # optimizer steps done
        self.tracker: Tracker | None = None
        self.stop = 0  # the signal that asks to stop after this step; all processes have agreed on it
        self.counters, self.window = Counters(), Window()
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # A non-finite batch poisons running statistics in the forward pass, before the guard can see it
        norms = [m for m in method.student.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self._statistics = [b for m in norms for b in m.buffers()]
        self._saved_statistics = [b.clone() for b in self._statistics]
        self.model: nn.Module = method
        if world_size() > 1:
            # The supervised losses of the others reach every trainable parameter in every step, burn-in included; the
            # DETR family has some that a batch may leave out (denoising without boxes, mask tokens), and DDP must look
            # for them. The teacher takes no gradient; buffers stay each process's own.
            ids = [device.index] if device.type == "cuda" else None
            renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
            own_buffers = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
            look = "query" in method.student.heads
            self.model = DistributedDataParallel(method, device_ids=ids, find_unused_parameters=look, **own_buffers)

    # ------------------------------------------------------------------------------------------ the loop
    def train(self) -> Counters:
        """Train up to step `max_iter`; returns what was counted, with the best and the last evaluation.

        Raises:
            TrainingError: after `max_skipped` non-finite steps in a row; the last good checkpoint stays.
            Stopped: after the step in which SIGINT or SIGTERM came (`sed.runtime.stopping`), or at once in an
                evaluation; with a checkpoint of the step.
        """
        with at_step_end():
            return self._train()

    def _train(self) -> Counters:
        o, counters = self.options, self.counters
        reporter = Reporter(self.folder, self.step, o.max_iter, enabled=rank() == 0, tracker=self.tracker)
        batches = {name: iter(stream) for name, stream in self.streams.items()}
        save_due = False
        try:
            if self.evaluate and counters.owed:
                reporter.write(self.step, self._evaluated(self.evaluate))
                self.save()
            while self.step < o.max_iter:
                # --- one step
                lr = self.learning_rate.apply(self.optimizer, self.step)
                good = self._step(batches)
                if good:
                    self.method.update_teacher(self.step)  # Eq. 4
                count_step(counters, good, self.step, o.max_skipped, self._last_checkpoint)
                self.step += 1
                reporter.step()

                # --- report
                if self.step % o.log_period == 0 or self.step == o.max_iter:
                    means = self.window.flush(self.device)
                    watch_collapse(counters, means, self.step, o.log_period, o.collapse_steps)
                    reporter.write(self.step, {**means, "lr": lr, "skipped": float(counters.skipped)})
                    reporter.show(self.step)

                # --- evaluate
                last = self.step == o.max_iter
                evaluation_due = last or (o.eval_period and self.step % o.eval_period == 0)
                if self.stop:
                    raise self._stopped(evaluation_due)
                if self.evaluate and evaluation_due:
                    reporter.write(self.step, self._evaluated(self.evaluate))
                    reporter.show(self.step, score=counters.last["teacher"]["AP"])
                    save_due = save_due or world_size() > 1  # in place of the checkpoint that owes the evaluation

                # --- save, but not in the midst of a row of bad steps: the last good checkpoint stays
                save_due = save_due or last or self.step % o.checkpoint_period == 0
                if save_due and (last or counters.skipped_in_row == 0):
                    self.save()
                    save_due = False
        finally:
            reporter.close()
        return counters

    def _step(self, batches: Mapping[str, Iterator[Any]]) -> bool:
        """Forward, backward, clip and, if all is finite, the optimizer's step; returns whether."""
        o, step = self.options, self.step
        if self._statistics:
            torch._foreach_copy_(self._saved_statistics, self._statistics)

        # --- losses and gradients, averaged over the batches of the step
        self.optimizer.zero_grad(set_to_none=True)
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        for micro in range(o.accumulate):
            labeled, unlabeled = self._read(batches, begun=micro > 0)
            with self._sync(last=micro == o.accumulate - 1):
                with self.precision.autocast():
                    losses = self.model(labeled, unlabeled, step)
                    total = torch.stack(list(losses.values())).sum() / o.accumulate
                self.precision.backward(total)
            finite &= torch.isfinite(total.detach())
            self.window.add({**losses, **self.method.metrics, "loss": total.detach() * o.accumulate})

        # --- guard: one read-back a step, of the gradient norm that clipping computes anyway
        self.precision.unscale(self.optimizer)
        norm = self.clip(self._parameters)
        finite &= torch.isfinite(norm)
        if world_size() > 1:  # a loss may be bad in one process only, a signal come late to one; all must decide alike
            agreed = torch.stack([finite.to(torch.int32), torch.full_like(finite, -asked(), dtype=torch.int32)])
            dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
            good, self.stop = (lambda finite, stop: (bool(finite), -stop))(*agreed.tolist())
        else:
            good, self.stop = bool(finite), asked()

        # --- update
        if good:
            self.optimizer.step()
            self.window.add({"grad_norm": norm})
        elif self._statistics:
            torch._foreach_copy_(self._statistics, self._saved_statistics)
        self.precision.update()
        return good

    def _read(self, batches: Mapping[str, Iterator[Any]], begun: bool) -> tuple[LabeledBatch, UnlabeledBatch | None]:
        """The next batches, on the device; where they cannot be had, the steps so far are not lost.

        Args:
            batches: of every stream.
            begun: whether something of the step is done already.
        """
        before = {name: stream.position for name, stream in self.streams.items()}
        try:
            labeled: LabeledBatch = next(batches["labeled"]).to(self.device)
            if not self.method.needs_unlabeled(self.step):
                return labeled, None
            unlabeled: UnlabeledBatch = next(batches["unlabeled"]).to(self.device)
            return labeled, unlabeled
        except Exception:
            if self.step and not begun and self._may_save_alone():
                for name, stream in self.streams.items():
                    stream.seek(before[name])
                self.save()
                log.error("step %d could not be begun; the steps so far are in %s", self.step, self._last_checkpoint())
            raise

    def _sync(self, last: bool) -> Any:
        """DDP exchanges gradients in the last backward pass of a step only."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) and not last else nullcontext()

    def _last_checkpoint(self) -> Path | None:
        return next(reversed(checkpoints(self.folder)), None)

    def _may_save_alone(self) -> bool:
        """Whether a checkpoint can be written where only this process knows that it is time."""
        return world_size() == 1 and self.counters.skipped_in_row == 0

    def _stopped(self, evaluation_due: bool) -> Stopped:
        """The end of a run that a signal has asked for, at the end of a step: saved, as all processes do together."""
        self.counters.owed = bool(self.evaluate and evaluation_due)  # it begins the resumed run
        if self.counters.skipped_in_row == 0:
            self.save()
        if world_size() > 1:
            dist.barrier()  # the file is whole before any process ends
        return Stopped(self.stop, f"after step {self.step}; {self._saved()}")

    def _saved(self) -> str:
        last = self._last_checkpoint()
        return f"{last} is whole; go on with --resume" if last else "no checkpoint was written yet"

    # ------------------------------------------------------------------------------------------ evaluation
    def _evaluated(self, evaluate: Callable[[Detector], Results]) -> Results:
        """`_evaluate`; where that fails, such as at a test image that cannot be read, the steps so far are not lost.

        A resumed run begins with the evaluation. Several processes save before it, for they cannot do so together once
        it has failed in one of them.
        """
        self.counters.owed = True
        if world_size() > 1 and self.counters.skipped_in_row == 0:
            self.save()
            dist.barrier()  # the file is whole before any process can fail
        try:
            with at_step_end(False):  # a signal ends an evaluation at once
                results = self._evaluate(evaluate)
        except (Exception, Stopped) as error:
            if self._may_save_alone():
                self.save()
            told = f"the evaluation at step {self.step} did not end; {self._saved()}"
            if isinstance(error, Stopped):
                raise Stopped(error.number, told) from None
            log.error(told)
            raise
        self.counters.owed = False
        return results

    def _evaluate(self, evaluate: Callable[[Detector], Results]) -> Results:
        """Evaluate student and teacher, keep the best teacher; random numbers and train mode stay as they were."""
        state = rng_state()
        c = self.counters
        try:
            found = {"student": evaluate(self.method.student)}
            if self.step <= self.method.schedule.burn_in:  # the teacher is a copy until then
                found["teacher"] = dict(found["student"])
            else:
                found["teacher"] = evaluate(self.method.teacher.module)
        finally:
            set_rng_state(state)
        c.last = found
        ap, best = c.last["teacher"]["AP"], c.best.get("AP", math.nan)
        log.info("step %d: AP student %.2f, teacher %.2f", self.step, c.last["student"]["AP"], ap)
        if not c.best or math.isnan(best) or ap > best:
            c.best, c.best_step = dict(c.last["teacher"]), self.step
            if rank() == 0:
                checkpoint.save_atomic(
                    checkpoint.plain_weights(self.method.teacher.module), self.folder / "model_best.pth"
                )
        return {f"{who}/{name}": value for who, results in c.last.items() for name, value in results.items()}

    # ------------------------------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs. Called by all processes together."""
        rng = [rng_state()]
        if world_size() > 1:
            rng = [None] * world_size()
            dist.all_gather_object(rng, rng_state())
        return {
            "method": self.method.state_dict(),
            "fingerprint": checkpoint.fingerprint(self.method.student),
            "optimizer": checkpoint.optimizer_state(self.optimizer),
            "scaler": self.precision.scaler.state_dict(),
            "streams": {name: stream.position for name, stream in self.streams.items()},
            "counters": copy.deepcopy(vars(self.counters)),
            "window": self.window.state_dict(),
            "rng": rng,
        }

    def save(self) -> None:
        """Write a checkpoint of the present state (rank 0)."""
        state = self.state_dict()
        if rank() == 0:
            checkpoint.save(state, self.folder, self.step, self.options.checkpoints_kept)

    def resume(self, path: str | Path) -> None:
        """Go on from a checkpoint, exactly where it was written.

        Raises:
            CheckpointError: unreadable, of another architecture, method or optimizer, or with a field that cannot be.
        """
        state = checkpoint.read_full(path)
        checkpoint.check_progress(state, path, self.precision.scaler.state_dict())
        checkpoint.load_method(self.method, state, path)
        checkpoint.load_optimizer(self.optimizer, state.get("optimizer"), path)
        self.precision.scaler.load_state_dict(state["scaler"])
        for name, stream in self.streams.items():
            stream.seek(state["streams"].get(name, 0))
        self.step, self.counters = state["step"], Counters(**state["counters"])
        self.window.load_state_dict(state["window"], self.device)
        if len(state["rng"]) == world_size():
            set_rng_state(state["rng"][rank()])
        else:
            log.warning(
                "%s was written by %d processes, this run has %d: it goes on, but not bit for bit",
                path,
                len(state["rng"]),
                world_size(),
            )
