"""One training: a model from its start to its last step on labelled and pseudo-labelled images.

It can be killed at any step: with --resume it goes on from its last checkpoint and ends with the same weights. What
changes with time (learning rate, gamma, mixup, data) is a function of the step.

Shape shorthand: B images of this process's share, C classes, * is (h, w) for segmentation and () for classification.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.param_scheduler import CosineParamScheduler, PolynomialDecayParamScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dmt.curriculum import confidence_of
from dmt.inference import Scores
from dmt.loading import Batch, Stream
from dmt.loss import IGNORED, Weighted, dynamic_loss, dynamic_weight, gamma_ramp, mix_share, mix_weights, mixed_loss
from sed.core.teacher import Teacher
from sed.engine.logging import Reporter, Window
from sed.engine.solver import Precision
from sed.runtime.checkpoint_files import checkpoint_path, checkpoints, prune, read, save_atomic
from sed.runtime.launch import rank, world_size
from sed.runtime.resume import (
    Field,
    check_optimizer,
    check_scaler,
    check_scores,
    check_step,
    check_tensors,
    check_window,
)

LOG_PERIOD = 20
MIXING = 7  # seeds the random numbers of mixup, apart from those of the data


class DivergedError(RuntimeError):
    """A training whose loss is not finite any more; the message says where and what to do."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; symbols as in `dmt.config`.

    Attributes:
        steps: T.
        lr: at the first step.
        schedule: "poly" or "cosine".
        momentum: of SGD.
        weight_decay: of all parameters.
        kind: which dynamic weight (`dmt.loss.KINDS`).
        gamma1: exponent where the models agree; all of it for "naive" and "stored".
        gamma2: exponent where they do not.
        gamma_ramp: whether the exponents grow over the training.
        threshold: least confidence of "threshold" and of `online`.
        online: whether the model labels the pseudo part of each batch itself, in the forward pass that trains it; plain
            cross-entropy then.
        mixup: a of Beta(a, a); 0: none. Images are mixed with images of the same process.
        weighs: with mixup, whether a pass over the unmixed images gives the weights; a baseline needs none.
        ema: decay of the averaged model; 0: none.
        eval_period: steps between evaluations; 0: at the end.
        checkpoint_period: steps between checkpoints.
    """

    steps: int
    lr: float
    schedule: str = "poly"
    momentum: float = 0.9
    weight_decay: float = 0.0
    kind: str = "three_case"
    gamma1: float = 0.0
    gamma2: float = 0.0
    gamma_ramp: bool = False
    threshold: float = 0.9
    online: bool = False
    mixup: float = 0.0
    weighs: bool = True
    ema: float = 0.0
    eval_period: int = 0
    checkpoint_period: int = 1000

    def lr_at(self, step: int) -> float:
        """The learning rate of a step in 0 .. T - 1."""
        poly, cosine = PolynomialDecayParamScheduler(self.lr, 0.9), CosineParamScheduler(self.lr, 0.0)
        return float((poly if self.schedule == "poly" else cosine)(step / self.steps))

    def gammas_at(self, step: int) -> dict[str, float]:
        """gamma1 and gamma2 of a step."""
        names = ("gamma1", "gamma2")
        if not self.gamma_ramp:
            return {name: getattr(self, name) for name in names}
        return {name: gamma_ramp(step, self.steps, getattr(self, name)) for name in names}


class Training:
    """Trains `model` in place and leaves checkpoints and metrics in `folder`.

    Args:
        model: images [B, 3, h, w] -> logits [B, C, *]; on `device`.
        stream: batches.
        recipe: how.
        precision: autocast and loss scaling.
        device: where the model is.
        folder: of this training; it exists.
        seed: of mixup.
        evaluate: model -> scores, of which "score" chooses the best step; None: the last step is taken.
    """

    def __init__(
        self,
        model: nn.Module,
        stream: Stream,
        recipe: Recipe,
        precision: Precision,
        device: torch.device,
        folder: Path,
        seed: int = 0,
        evaluate: Callable[[nn.Module], Scores] | None = None,
    ) -> None:
        self.model, self.stream, self.recipe, self.precision = model, stream, recipe, precision
        self.device, self.folder, self.seed, self.evaluate = device, folder, seed, evaluate
        self.averaged = Teacher(model).to(device) if recipe.ema else None
        self.optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad],
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.step, self.window = 0, Window()
        self.best: dict[str, Any] = {"step": 0, "scores": {}}
        self.running: nn.Module = model
        if world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.running = DistributedDataParallel(model, device_ids=ids)

    @property
    def chosen(self) -> nn.Module:
        """The model that labels and is tested: the averaged one where there is one."""
        return self.averaged.module if self.averaged is not None else self.model

    # ------------------------------------------------------------------------------------------ the loop
    def run(self) -> dict[str, Any]:
        """Go on to the last step; leaves the chosen weights in the model and in folder/model.pth.

        Returns:
            {"step": of the chosen weights, "scores": theirs on the selecting images ({}: nobody chose)}.

        Raises:
            DivergedError: where the mean loss of a window is not finite.
        """
        r = self.recipe
        self._resume()
        reporter = Reporter(self.folder, self.step, r.steps, enabled=rank() == 0, score_name="score")
        try:
            while self.step < r.steps:
                lr = r.lr_at(self.step)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                self._step(next(self.stream).to(self.device))
                if self.averaged is not None:
                    self.averaged.update(self.model, r.ema)
                self.step += 1
                reporter.step()
                last = self.step == r.steps
                saves = last or self.step % r.checkpoint_period == 0
                if self.step % LOG_PERIOD == 0 or saves:  # so that no diverged model is saved
                    self._report(reporter, lr)
                if self.evaluate and (last or (r.eval_period and self.step % r.eval_period == 0)):
                    self._choose(reporter)
                if saves:
                    self._save()
        finally:
            reporter.close()
            self.stream.close()
        self._agree()
        if self.evaluate:
            if world_size() > 1:  # the first process has written it
                dist.barrier()
            self.chosen.load_state_dict(read(self._best_path()))
        else:
            self.best["step"] = r.steps
        if rank() == 0:
            save_atomic(plain(self.chosen), self.folder / "model.pth")
        return self.best

    def _step(self, batch: Batch) -> None:
        r = self.recipe
        self.running.train()
        self.optimizer.zero_grad(set_to_none=True)
        if r.mixup:
            loss, metrics = self._mixed(batch)
        else:
            with self.precision.autocast():
                logits = self.running(batch.images)
            labels = batch.labels
            if r.online:
                labels = label_online(logits, labels, batch.pseudo, r.threshold)
            loss, metrics = dynamic_loss(
                logits,
                labels,
                confidence_of(batch.codes),
                batch.pseudo,
                threshold=r.threshold,
                total=_shared_count(labels),
                **({"kind": "naive", "gamma1": 0.0, "gamma2": 0.0} if r.online else self._weighting()),
            )
        self.precision.backward(loss)
        self.precision.scaler.step(self.optimizer)
        self.precision.update()
        self.window.add({"loss": loss, **metrics})

    def _mixed(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mixup of the whole batch: weights from a pass over the unmixed images, then interpolated with them."""
        r = self.recipe
        found = Weighted(torch.ones_like(batch.labels, dtype=torch.float32), batch.labels, batch.labels)
        if r.weighs:
            with torch.no_grad(), self.precision.autocast():
                clean = self.model(batch.images)
            confidence = confidence_of(batch.codes)
            options = {"threshold": r.threshold, **self._weighting()}
            found = dynamic_weight(clean, batch.labels, confidence, batch.pseudo, **options)
        rng = np.random.default_rng([self.seed, MIXING, self.step])
        share = mix_share(rng, r.mixup)
        order = torch.from_numpy(rng.permutation(len(batch.images))).to(self.device)
        with self.precision.autocast():
            logits = self.running(share * batch.images + (1 - share) * batch.images[order])
        weight = mix_weights(found.weight, order, share)
        loss = mixed_loss(logits, found.labels, found.labels[order], weight, share)
        pseudo = batch.pseudo.sum()
        return loss, {"weight": (found.weight * batch.pseudo).sum() / pseudo.clamp(min=1)}

    def _weighting(self) -> dict[str, Any]:
        return {"kind": self.recipe.kind, **self.recipe.gammas_at(self.step)}

    def _report(self, reporter: Reporter, lr: float) -> None:
        means = self.window.flush(self.device)
        if not math.isfinite(means["loss"]):
            raise DivergedError(
                f"{self.folder}: the loss is {means['loss']} by step {self.step}; lower the learning rate "
                "(SOLVER.BASE_LR, BASELINE_LR) or turn SOLVER.AMP.ENABLED off, in another OUTPUT_DIR; "
                "SOLVER.BASELINE_FROM takes a finished baseline from here"
            )
        reporter.write(self.step, {**means, "lr": lr})
        reporter.show(self.step)

    def _choose(self, reporter: Reporter) -> None:
        """Evaluate and keep the best weights, under their step: a checkpoint names that of its own time."""
        self._agree()
        scores = self.evaluate(self.chosen)
        reporter.write(self.step, scores)
        reporter.show(self.step, score=scores["score"])
        if not self.best["scores"] or scores["score"] > self.best["scores"]["score"]:
            self.best = {"step": self.step, "scores": scores}
            if rank() == 0:
                save_atomic(plain(self.chosen), self._best_path())

    def _best_path(self) -> Path:
        return self.folder / f"model_best_{self.best['step']:07d}.pth"

    # ------------------------------------------------------------------------------------------ state
    def _agree(self) -> None:
        """Batch norm's statistics are each process's own, where they are not synchronised: the first one's count."""
        if world_size() > 1:
            for buffer in self.chosen.buffers():
                dist.broadcast(buffer, 0)

    def _save(self) -> None:
        if rank() != 0:
            return
        path = checkpoint_path(self.folder, self.step)
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "window": self.window.state_dict(),
            "best": self.best,
        }
        save_atomic(state, path)
        prune(path, 1)
        for older in self.folder.glob("model_best_*.pth"):
            if older != self._best_path():
                older.unlink()

    def _resume(self) -> None:
        if not (saved := checkpoints(self.folder)):
            return
        path = saved[-1]
        state = read(path)
        root = Field(state, path)
        step = check_step(root["step"], path)
        check_tensors(root["model"], self.model.state_dict())
        if self.averaged is not None:
            check_tensors(root["averaged"], self.averaged.state_dict())
        check_optimizer(root["optimizer"], self.optimizer)
        check_scaler(root["scaler"], self.precision.scaler.state_dict())
        check_window(root["window"])
        root["best"]["step"].whole(0, step)
        check_scores(root["best"]["scores"])
        self.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.window.load_state_dict(state["window"], self.device)
        self.step, self.best = step, state["best"]
        self.stream.seek(self.step)


def plain(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def label_online(logits: Tensor, labels: Tensor, pseudo: Tensor, threshold: float) -> Tensor:
    """Labels [B, *] in which the pseudo images have the model's own, from the logits [B, C, *] that are trained.

    Where its confidence is below `threshold` they are ignored (255) and so do not count in N either, as in the authors'
    code; so is what augmentation padded. Labelled images keep their labels.
    """
    confidence, answer = logits.float().softmax(1).max(1)
    own = pseudo.reshape(-1, *[1] * (labels.dim() - 1)) & (labels != IGNORED)
    return torch.where(own, answer.masked_fill(confidence < threshold, IGNORED), labels)


def _shared_count(labels: Tensor) -> Tensor | None:
    """N of the loss where several processes share a batch: DDP averages, so each takes its part of the whole's N."""
    if world_size() == 1:
        return None
    count = (labels != IGNORED).sum().float()
    dist.all_reduce(count)
    return count / world_size()
