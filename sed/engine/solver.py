"""Optimizer, learning rate, mixed precision and gradient clipping: torch and fvcore, put together.

What changes with time is a stateless function of the step, so that resuming needs no scheduler state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import Tensor, nn

from sed.runtime.learning_rates import in_backbone

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------- optimizer
def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    weight_decay_norm: float,
    backbone_multiplier: float,
) -> torch.optim.Optimizer:
    """One optimizer over the trainable parameters of `model`, in at most four groups.

    Args:
        model: the student; parameters without `requires_grad` are left out.
        name: "SGD" or "AdamW".
        lr: base learning rate; `LearningRate` moves it.
        momentum: of SGD.
        weight_decay: of everything but normalisation layers.
        weight_decay_norm: of the weights and biases of normalisation layers.
        backbone_multiplier: factor on `lr` for the parameters of `in_backbone`.

    Raises:
        ValueError: for an unknown name, no trainable parameter, or a multiplier without any `backbone`.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            slower = backbone_multiplier != 1.0 and in_backbone(f"{module_name}.{key}")
            groups.setdefault((slower, isinstance(module, NORMS)), []).append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; lower MODEL.BACKBONE.FREEZE_AT")
    if backbone_multiplier != 1.0 and not any(slower for slower, _ in groups):
        raise ValueError(
            f"SOLVER.BACKBONE_MULTIPLIER is {backbone_multiplier} but {type(model).__name__} has no "
            "trainable parameter below a module named 'backbone'; set it to 1.0"
        )
    rows = [
        {
            "params": parameters,
            "lr": lr * (backbone_multiplier if slower else 1.0),
            "weight_decay": weight_decay_norm if is_norm else weight_decay,
        }
        for (slower, is_norm), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    if name == "SGD":
        return torch.optim.SGD(rows, lr=lr, momentum=momentum, fused=True)
    if name == "AdamW":
        return torch.optim.AdamW(rows, lr=lr, fused=True)
    raise ValueError(f"SOLVER.OPTIMIZER is {name!r}; it must be SGD or AdamW")


# ---------------------------------------------------------------------------------------------- learning rate
def lr_factor(
    name: str,
    *,
    max_iter: int,
    steps: Sequence[int],
    gamma: float,
    warmup_iters: int,
    warmup_factor: float,
) -> Callable[[int], float]:
    """The factor on the base learning rate at a step, with Detectron2's meaning of the two names.

    "WarmupMultiStepLR": 1, times `gamma` from each of `steps` on; "WarmupCosineLR": half a cosine from 1
    to 0 over all of `max_iter`. Both rise linearly over `warmup_iters`, from `warmup_factor` x their value at
    step 0 to their value at the end of the warm-up.

    Raises:
        ValueError: for an unknown name or `max_iter` < 1.
    """
    if max_iter < 1:
        raise ValueError(f"SOLVER.MAX_ITER is {max_iter}; it must be at least 1")
    scheduler: ParamScheduler
    if name == "WarmupMultiStepLR":
        milestones = [step for step in steps if step < max_iter]
        if len(milestones) < len(steps):
            log.warning("SOLVER.STEPS %s: those from SOLVER.MAX_ITER %d on are never reached", tuple(steps), max_iter)
        scheduler = MultiStepParamScheduler(
            [gamma**k for k in range(len(milestones) + 1)], milestones=milestones, num_updates=max_iter
        )
    elif name == "WarmupCosineLR":
        scheduler = CosineParamScheduler(1.0, 0.0)
    else:
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME is {name!r}; it must be WarmupMultiStepLR or WarmupCosineLR")
    length = min(warmup_iters / max_iter, 1.0)
    if length > 0:
        end = scheduler(length) if length < 1.0 else scheduler(1.0 - 1.0 / max_iter)
        warmup = LinearParamScheduler(warmup_factor * scheduler(0.0), end)
        scheduler = CompositeParamScheduler(
            [warmup, scheduler], lengths=[length, 1.0 - length], interval_scaling=["rescaled", "fixed"]
        )
    return lambda step: float(scheduler(step / max_iter))


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of every group of an optimizer: its own base times one factor of the step.

    Attributes:
        bases: base learning rate of each parameter group.
        factor: step -> factor.
    """

    bases: tuple[float, ...]
    factor: Callable[[int], float]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> LearningRate:
        """Take the groups' present learning rates as the bases."""
        return cls(tuple(group["lr"] for group in optimizer.param_groups), factor)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the rates for `step`; returns the highest of them."""
        factor = self.factor(step)
        for group, base in zip(optimizer.param_groups, self.bases, strict=True):
            group["lr"] = base * factor
        return max(self.bases) * factor


# ---------------------------------------------------------------------------------------------- precision
class Precision:
    """Mixed precision around the forward pass, loss scaling around the backward pass (float16 only).

    Args:
        enabled: off means float32 throughout.
        dtype: "bfloat16" or "float16".
        device: where the model lives.
    """

    def __init__(self, enabled: bool, dtype: str, device: torch.device) -> None:
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        if dtype not in dtypes:
            raise ValueError(f"SOLVER.AMP.DTYPE is {dtype!r}; it must be bfloat16 or float16")
        self.enabled, self.dtype, self.device = enabled, dtypes[dtype], device
        self.scaler = torch.amp.GradScaler(device.type, enabled=enabled and dtype == "float16")

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.enabled)

    def backward(self, loss: Tensor) -> None:
        """Backward of the scaled loss."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients back to their true size."""
        self.scaler.unscale_(optimizer)

    def update(self) -> None:
        """Adapt the loss scale: down after non-finite gradients, up after many good steps."""
        if self.scaler.is_enabled():
            self.scaler.update()


# ---------------------------------------------------------------------------------------------- gradients
@dataclass(frozen=True)
class Clip:
    """Gradient clipping, with Detectron2's names.

    Attributes:
        kind: "value" (elementwise), "norm" (of each parameter's gradient), "full_model" (the norm of all gradients
            together) or "none".
        value: the limit.
    """

    kind: str = "none"
    value: float = math.inf

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Clip in place; returns the 2-norm of all gradients before clipping (a scalar tensor, no sync)."""
        with_grad = [p for p in parameters if p.grad is not None]
        if self.kind == "full_model":
            return torch.nn.utils.clip_grad_norm_(with_grad, self.value, foreach=True)
        grads = [p.grad for p in with_grad if p.grad is not None]
        norms = torch._foreach_norm(grads)
        if self.kind == "value":
            torch.nn.utils.clip_grad_value_(with_grad, self.value, foreach=True)
        if self.kind == "norm":
            torch._foreach_mul_(grads, [(self.value / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
        return torch.linalg.vector_norm(torch.stack(norms))
